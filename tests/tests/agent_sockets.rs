//! The programs for sockets as an agent keeps them: attached, taken over, detached; and clients that stay.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::Flow;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Service, ServiceKey, Slot};
use fairlead_common::socket::Client;
use fairlead_common::tables::{Affinity, Reasons, Services};
use fairlead_control::cleanup;
use fairlead_control::dataplane::load::{self, Loaded};
use fairlead_control::dataplane::pins::{Lock, Pins};
use fairlead_control::dataplane::table::Pinned;
use fairlead_control::dataplane::{affinity, sockets};
use fairlead_control::host::Netlink;
use fairlead_control::plan::Actual;
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::cgroup::Cgroup;
use fairlead_tests::root::is_root;
use nix::sched::{CloneFlags, unshare};

/// Nobody has this address (RFC 5737): whoever connects to it by UDP only asks the programs.
const SERVICE: &str = "192.0.2.80";

/// An agent's place: pins and a cgroup of its own.
struct Place {
    pins: Pins,
    lock: Lock,
    cgroup: Cgroup,
    _fs: BpfFs,
}

impl Place {
    fn new() -> Self {
        let fs = BpfFs::mount().unwrap();
        let pins = Pins::new(fs.path().join("fairlead"));
        pins.prepare().unwrap();
        let lock = pins.lock().unwrap();
        Self {
            pins,
            lock,
            cgroup: Cgroup::enter().unwrap(),
            _fs: fs,
        }
    }

    fn load(&self) -> Loaded {
        load::load(&self.pins, &self.lock).unwrap()
    }

    /// Whether a socket of this thread meets the programs: a service without backends refuses it.
    fn is_met(&self) -> bool {
        let key = ServiceKey::new(
            Addr::new(SERVICE.parse().unwrap()),
            Port::new(1),
            Proto::UDP,
        );
        let mut services = Pinned::<Services>::open(&self.pins).unwrap();
        services.set(&key.inside(), &Service::default()).unwrap();
        let before = self.refused();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Without the programs there may be a way or none.
        let _ = socket.connect((SERVICE, 1));
        self.refused() > before
    }

    fn refused(&self) -> u64 {
        let reasons = Pinned::<Reasons>::open(&self.pins).unwrap();
        let row = Reason::ServiceSocketRefused as u32;
        reasons.count(row).unwrap().packets
    }
}

#[test]
fn the_programs_meet_sockets_from_attaching_until_detaching() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut loaded = place.load();
    assert!(!place.is_met());

    assert!(!loaded.attach_sockets(place.cgroup.path()).unwrap());
    assert!(place.is_met());

    assert!(sockets::detach(&place.pins).unwrap());
    assert!(!place.is_met());
    assert!(!sockets::detach(&place.pins).unwrap());
}

#[test]
fn the_programs_stay_when_the_agent_ends_and_the_next_one_takes_their_links_over() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    place.load().attach_sockets(place.cgroup.path()).unwrap();
    assert!(place.is_met());

    let mut next = place.load();
    assert!(next.attach_sockets(place.cgroup.path()).unwrap());

    drop(next);
    assert!(place.is_met());
}

#[test]
fn the_programs_move_to_another_cgroup() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut loaded = place.load();
    loaded.attach_sockets(place.cgroup.path()).unwrap();
    let child = place.cgroup.path().join("child");
    std::fs::create_dir(&child).unwrap();

    let were_there = loaded.attach_sockets(&child);
    let is_met = place.is_met();
    std::fs::remove_dir(&child).unwrap();

    assert!(!were_there.unwrap());
    assert!(!is_met);
    // The child's cgroup has gone, and its links with it.
    assert!(!loaded.attach_sockets(place.cgroup.path()).unwrap());
    assert!(place.is_met());
}

#[test]
fn two_agents_programs_stand_beside_each_other() {
    if !is_root() {
        return;
    }
    let (first, second) = (Place::new(), BpfFs::mount().unwrap());
    first.load().attach_sockets(first.cgroup.path()).unwrap();
    let pins = Pins::new(second.path().join("fairlead"));
    pins.prepare().unwrap();
    let lock = pins.lock().unwrap();

    let mut other = load::load(&pins, &lock).unwrap();
    other.attach_sockets(first.cgroup.path()).unwrap();

    assert!(first.is_met());
    assert!(sockets::detach(&pins).unwrap());
    assert!(first.is_met());
}

#[test]
fn a_folder_that_is_no_cgroup_is_refused_with_what_to_do() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut loaded = place.load();
    let folder = tempfile::tempdir().unwrap();

    let said =
        |path: &Path, loaded: &mut Loaded| loaded.attach_sockets(path).unwrap_err().to_string();

    let path = folder.path().display();
    assert_eq!(
        said(folder.path(), &mut loaded),
        format!(
            "{path} is no cgroup of the unified hierarchy: `mount -t cgroup2 none FOLDER` makes that visible, \
             `socketLoadBalancing.cgroup` names one"
        )
    );
    assert!(said(&folder.path().join("none"), &mut loaded).contains("No such file or directory"));
}

#[tokio::test]
async fn cleanup_takes_the_programs_off_their_cgroup() {
    if !is_root() {
        return;
    }
    // Routes and neighbours go too: those of a namespace where there are none.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let place = Place::new();
    place.load().attach_sockets(place.cgroup.path()).unwrap();
    assert!(place.is_met());

    let Place {
        pins, lock, cgroup, ..
    } = place;
    let removed = cleanup::cleanup(&Netlink::open().unwrap(), &pins, Some(lock)).await;

    assert!(removed.unwrap().sockets);
    drop(cgroup);
}

#[test]
fn clients_of_a_backend_that_has_left_its_service_are_let_go() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    drop(place.load());
    let client = |namespace, service| Client {
        namespace,
        service,
        pad: 0,
    };
    let stays = |backend| Flow {
        backend,
        last_seen_s: 1,
    };
    let mut table = Pinned::<Affinity>::open(&place.pins).unwrap();
    for (client, backend) in [
        (client(1, 5), 20),
        (client(2, 5), 21),
        (client(3, 5), 22),
        (client(1, 6), 20),
    ] {
        table.set(&client, &stays(backend)).unwrap();
    }
    let key = ServiceKey::new(
        Addr::new(SERVICE.parse().unwrap()),
        Port::new(1),
        Proto::UDP,
    );
    let row = Service {
        id: 5,
        ring: 512,
        slots: 2,
        affinity_s: 60,
        ..Service::default()
    };
    // 21 drains: it has no slot but by what was before.
    let ring = [(20, 21), (22, 0)].map(|(current, previous)| Slot { current, previous });
    let actual = Actual {
        services: BTreeMap::from([(key.inside(), row)]),
        rings: BTreeMap::from([(512, ring.to_vec())]),
        ..Actual::default()
    };

    let gone = affinity::let_go(&place.pins, &actual).unwrap();

    // One of 21's, and one of a service that there is not.
    assert_eq!(gone, 2);
    let mut left: Vec<_> = table.rows().map(|row| row.unwrap().0).collect();
    left.sort();
    assert_eq!(left, [client(1, 5), client(3, 5)]);
}

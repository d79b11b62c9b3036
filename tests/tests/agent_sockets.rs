//! The programs for sockets as an agent keeps them: attached, taken over, detached; and clients that stay.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;

use caps::{CapSet, Capability};
use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::Flow;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Service, ServiceKey, Slot};
use fairlead_common::socket::Client;
use fairlead_common::tables::{Affinity, Reasons, Services};
use fairlead_control::cleanup;
use fairlead_control::dataplane::load::Loaded;
use fairlead_control::dataplane::table::Pinned;
use fairlead_control::dataplane::{affinity, sockets};
use fairlead_control::host::Netlink;
use fairlead_control::plan::Actual;
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::cgroup::Cgroup;
use fairlead_tests::lab::binary;
use fairlead_tests::netns::{Netns, STARTS, veth, wait_for};
use fairlead_tests::place;
use fairlead_tests::process::Process;
use fairlead_tests::root::is_root;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

/// Nobody has this address (RFC 5737): whoever connects to it by UDP only asks the programs.
const SERVICE: &str = "192.0.2.80";

/// An agent's place, and a cgroup.
struct Place {
    own: place::Place,
    cgroup: Cgroup,
}

impl Place {
    fn new() -> Self {
        Self {
            own: place::Place::make().unwrap(),
            cgroup: Cgroup::enter().unwrap(),
        }
    }

    fn load(&self) -> Loaded {
        self.own.load().unwrap()
    }

    /// Whether a socket of this thread meets the programs: a service without backends refuses it.
    fn is_met(&self) -> bool {
        let key = ServiceKey::new(
            Addr::new(SERVICE.parse().unwrap()),
            Port::new(1),
            Proto::UDP,
        );
        let mut services = Pinned::<Services>::open(&self.own.pins).unwrap();
        services.set(&key.inside(), &Service::default()).unwrap();
        let before = self.refused();
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Without the programs there may be a way or none.
        let _ = socket.connect((SERVICE, 1));
        self.refused() > before
    }

    fn refused(&self) -> u64 {
        let reasons = Pinned::<Reasons>::open(&self.own.pins).unwrap();
        let row = Reason::ServiceSocketRefused as u32;
        reasons.count(&row).unwrap().packets
    }
}

#[test]
fn the_programs_meet_sockets_from_attaching_until_detaching() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let loaded = place.load();
    assert!(!place.is_met());

    assert!(!loaded.attach_sockets(place.cgroup.path()).unwrap());
    assert!(place.is_met());

    assert!(sockets::detach(&place.own.pins).unwrap());
    assert!(!place.is_met());
    assert!(!sockets::detach(&place.own.pins).unwrap());
}

#[test]
fn the_programs_stay_when_the_agent_ends_and_the_next_one_takes_their_links_over() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    place.load().attach_sockets(place.cgroup.path()).unwrap();
    assert!(place.is_met());

    let next = place.load();
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
    let loaded = place.load();
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
    let (first, second) = (Place::new(), place::Place::make().unwrap());
    first.load().attach_sockets(first.cgroup.path()).unwrap();

    let other = second.load().unwrap();
    other.attach_sockets(first.cgroup.path()).unwrap();

    assert!(first.is_met());
    assert!(sockets::detach(&second.pins).unwrap());
    assert!(first.is_met());
}

#[test]
fn a_folder_that_is_no_cgroup_is_refused_with_what_to_do() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let loaded = place.load();
    let folder = tempfile::tempdir().unwrap();

    let said = |path: &Path, loaded: &Loaded| loaded.attach_sockets(path).unwrap_err().to_string();

    let path = folder.path().display();
    assert_eq!(
        said(folder.path(), &loaded),
        format!(
            "{path} is no cgroup of the unified hierarchy: `mount -t cgroup2 none FOLDER` makes that visible, \
             `socketLoadBalancing.cgroup` names one"
        )
    );
    assert!(said(&folder.path().join("none"), &loaded).contains("No such file or directory"));
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
        own: place::Place { pins, lock, .. },
        cgroup,
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
    let mut table = Pinned::<Affinity>::open(&place.own.pins).unwrap();
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
        services: [(key.inside(), row)].into_iter().collect(),
        rings: [(512_u32, std::sync::Arc::new(ring.to_vec()))]
            .into_iter()
            .collect(),
        ..Actual::default()
    };

    let gone = affinity::let_go(&place.own.pins, &actual).unwrap();

    // One of 21's, and one of a service that there is not.
    assert_eq!(gone, 2);
    let mut left: Vec<_> = table.rows().map(|row| row.unwrap().0).collect();
    left.sort();
    assert_eq!(left, [client(1, 5), client(3, 5)]);
}

/// A node whose services are for sockets: what a cluster's documents say of it.
fn documents(node: &str, endpoint: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{ name: {node} }}\n\
         status: {{ addresses: [{{ type: InternalIP, address: 10.98.0.1 }}] }}\n\
         ---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{ name: web, namespace: default }}\n\
         spec:\n  type: NodePort\n  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1]\n  \
         ports: [{{ name: http, port: 80, targetPort: 8080, nodePort: 30080, protocol: TCP }}]\n\
         ---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata:\n  name: web-1\n  namespace: default\n  labels: {{ kubernetes.io/service-name: web }}\n\
         addressType: IPv4\nports: [{{ name: http, port: 8080, protocol: TCP }}]\n\
         endpoints: [{{ addresses: [{endpoint}], nodeName: {node}, conditions: {{ ready: true }} }}]\n"
    )
}

#[test]
fn a_process_reaches_a_cluster_address_as_long_as_the_documents_say_so_whatever_the_agent_does() {
    if !is_root() {
        return;
    }
    let cgroup = Cgroup::enter().unwrap();
    let netns = Netns::unique("fl-sock").unwrap();
    let backend = Netns::unique("fl-sock").unwrap();
    veth((&netns, "eth0"), (&backend, "eth0")).unwrap();
    netns.ip("addr add 10.98.0.1/32 dev lo").unwrap();
    netns.ip("addr add 10.99.0.254/24 dev eth0").unwrap();
    backend.ip("addr add 10.99.0.1/24 dev eth0").unwrap();
    let bpffs = BpfFs::mount().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("manifests")).unwrap();
    let manifest = path("manifests").join("all.yaml");
    std::fs::write(&manifest, documents("node1", "10.99.0.1")).unwrap();
    let config = format!(
        "nodeName: node1\nbpf: {{ pinPath: {}/fairlead }}\nsocket: {dir}/agent.sock\n\
         manifests: {dir}/manifests\ntelemetry: {{ listen: none }}\n\
         socketLoadBalancing: {{ cgroup: {} }}\n",
        bpffs.path().display(),
        cgroup.path().display(),
        dir = dir.path().display(),
    );
    std::fs::write(path("config.yaml"), config).unwrap();
    let start = || {
        let mut command = Command::new(binary("fairlead").unwrap());
        command.args(["run", "--config"]).arg(path("config.yaml"));
        // Not by `ip netns exec`, which hides the host's cgroups.
        let start = || Process::start(&mut command, &path("agent.log"));
        netns.enter(start).unwrap().unwrap()
    };
    let status = || {
        let mut command = netns.command(binary("dpctl").unwrap());
        command.args(["status", "--socket"]).arg(path("agent.sock"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let listener = backend
        .enter(|| TcpListener::bind("10.99.0.1:8080").unwrap())
        .unwrap();
    // The address that a process sees as its peer, of a connection that has come to the backend.
    let peer = |service: &str| -> anyhow::Result<String> {
        let stream = netns.enter(|| TcpStream::connect(service))??;
        listener.accept()?;
        Ok(stream.peer_addr()?.to_string())
    };
    let reached =
        |service: &str| wait_for("the service to be reached", 20, || peer(service).map(Some));

    let mut agent = start();
    for service in ["10.96.0.1:80", "10.98.0.1:30080", "127.0.0.1:30080"] {
        let seen =
            reached(service).unwrap_or_else(|error| panic!("{error:#}\n{}", agent.printed()));
        assert_eq!(seen, service);
    }
    let said = status();
    assert!(
        said.contains("  sockets") && said.contains("  link"),
        "{said}"
    );

    agent.signal(Signal::SIGKILL).unwrap();
    while agent.ended().unwrap().is_none() {}
    assert_eq!(peer("10.96.0.1:80").unwrap(), "10.96.0.1:80");
    agent = start();
    wait_for("the next agent to tell of the sockets", STARTS, || {
        peer("10.96.0.1:80")?;
        Ok(status().contains("  sockets").then_some(()))
    })
    .unwrap();

    std::fs::remove_file(&manifest).unwrap();
    wait_for("the sockets to be left alone", 20, || {
        Ok((!status().contains("  sockets")).then_some(()))
    })
    .unwrap();
    assert!(peer("10.96.0.1:80").is_err());
    agent.stop().unwrap();
}

#[test]
fn three_capabilities_suffice() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let all = caps::read(None, CapSet::Effective).unwrap();
    let three = [
        Capability::CAP_BPF,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_PERFMON,
    ];
    // Of this thread only.
    caps::set(None, CapSet::Effective, &three.into_iter().collect()).unwrap();

    let loaded = place.own.load();
    let were_there = loaded
        .as_ref()
        .map(|loaded| loaded.attach_sockets(place.cgroup.path()));
    let taken_over = place
        .own
        .load()
        .map(|loaded| loaded.attach_sockets(place.cgroup.path()));
    let is_detached = sockets::detach(&place.own.pins);

    caps::set(None, CapSet::Effective, &all).unwrap();
    assert!(!were_there.unwrap().unwrap());
    assert!(taken_over.unwrap().unwrap());
    assert!(is_detached.unwrap());
}

//! Our speaker with other people's: FRR, BIRD, GoBGP, OpenBGPD and ExaBGP, in namespaces, over real TCP.

#![expect(
    clippy::unwrap_used,
    reason = "the steps of these stories fail like their assertions"
)]

mod bfd;
mod distance;
mod exabgp;
mod extensions;
mod gobgp;
mod openbgpd;
mod record;
mod restart;
mod signature;
mod transit;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::time::Duration;

use fairlead_bgp::config::Announcements;
use fairlead_bgp::{
    Announcement, ExportRule, Family, ImportPolicy, PeerConfig, SpeakerConfig, State,
};
use fairlead_control::bgp_io::record::Recorder;
use fairlead_control::bgp_io::{self, BgpHandle};
use fairlead_tests::netns::{Netns, veth, wait_for};
use fairlead_tests::peer::{Bird, Frr, GoBgp};
use fairlead_tests::root::is_root;
use ipnetwork::IpNetwork;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const OUR_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const THEIR_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const OUR_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
const THEIR_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// Two namespaces on one link.
struct Link {
    ours: Netns,
    theirs: Netns,
    dir: TempDir,
}

impl Link {
    fn new() -> Self {
        let ours = Netns::unique("fl-bgp-us").unwrap();
        let theirs = Netns::unique("fl-bgp-peer").unwrap();
        veth((&ours, "eth0"), (&theirs, "eth0")).unwrap();
        for (netns, v4, v6) in [(&ours, OUR_V4, OUR_V6), (&theirs, THEIR_V4, THEIR_V6)] {
            netns.ip(&format!("addr add {v4}/24 dev eth0")).unwrap();
            netns.ip(&format!("addr add {v6}/64 dev eth0")).unwrap();
        }
        let dir = tempfile::Builder::new()
            .prefix("fl-bgp-")
            .tempdir()
            .unwrap();
        // FRR's daemons drop to a user of their own and write here.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        Self { ours, theirs, dir }
    }

    fn frr(&self, neighbor: &str) -> Frr {
        self.frr_of(65000, neighbor)
    }

    fn frr_of(&self, asn: u32, neighbor: &str) -> Frr {
        self.frr_with(asn, "frr", "", neighbor)
    }

    /// An FRR of this AS, with its files in `dir`, and lines about itself and about us.
    fn frr_with(&self, asn: u32, dir: &str, itself: &str, neighbor: &str) -> Frr {
        let config = Self::frr_config(asn, itself, neighbor);
        Frr::start(&self.theirs, &self.dir.path().join(dir), &config).unwrap()
    }

    fn frr_config(asn: u32, itself: &str, neighbor: &str) -> String {
        format!(
            "hostname peer\n\
             router bgp {asn}\n\
             {itself}\
             \x20bgp router-id {THEIR_V4}\n\
             \x20bgp graceful-restart\n\
             \x20no bgp ebgp-requires-policy\n\
             \x20no bgp default ipv4-unicast\n\
             \x20no bgp network import-check\n\
             \x20neighbor us peer-group\n\
             \x20neighbor us remote-as 65001\n\
             \x20neighbor us timers 3 9\n\
             \x20neighbor us timers connect 1\n\
             {neighbor}\
             \x20address-family ipv4 unicast\n\
             \x20 network 203.0.113.0/24\n\
             \x20 neighbor us activate\n\
             \x20 neighbor us soft-reconfiguration inbound\n\
             \x20exit-address-family\n\
             \x20address-family ipv6 unicast\n\
             \x20 network 2001:db8:f::/48\n\
             \x20 neighbor us activate\n\
             \x20exit-address-family\n"
        )
    }

    /// Runs a story on our side of the link; the driver's own threads live there too.
    fn run<F: Future<Output = ()>>(&self, story: impl FnOnce() -> F + Send) {
        self.ours
            .enter(|| {
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(story());
            })
            .unwrap();
    }
}

/// A running driver.
struct Ours {
    handle: BgpHandle,
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Ours {
    fn start() -> Self {
        Self::start_with(None)
    }

    fn start_with(recorder: Option<&Recorder>) -> Self {
        let config = SpeakerConfig {
            local_as: 65001,
            router_id: OUR_V4,
            hostname: Some("fairlead".to_owned()),
            multipath_limit: 8,
        };
        let cancel = CancellationToken::new();
        let (handle, task) = bgp_io::start(config, 1, Some(179), recorder, cancel.clone()).unwrap();
        Self {
            handle,
            task,
            cancel,
        }
    }

    /// Ends as an agent ends that is told to stop.
    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }

    async fn announce(&self, prefixes: &[&str]) {
        let announcements = prefixes
            .iter()
            .map(|prefix| (net(prefix), Announcement::default()))
            .collect();
        self.handle.set_announcements(announcements).await.unwrap();
    }

    async fn learns(&self, expected: &[(&str, IpAddr)]) {
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(prefix, next_hop)| (net(prefix), vec![*next_hop]))
            .collect();
        let mut learnt = self.handle.learnt();
        let wanted = learnt.wait_for(|table| {
            let seen: BTreeMap<_, Vec<_>> = table
                .iter()
                .map(|(prefix, paths)| (prefix, paths.iter().map(|p| p.next_hop).collect()))
                .collect();
            seen == expected
        });
        let outcome = tokio::time::timeout(Duration::from_secs(20), wanted)
            .await
            .is_ok();
        let peers = self.handle.peers().await;
        assert!(
            outcome,
            "wanted {expected:?}, learnt {:?}, peers {peers:?}",
            self.handle.learnt().borrow(),
        );
    }
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn peer() -> PeerConfig {
    let mut peer = PeerConfig::new("peer", THEIR_V4.into(), 65000);
    peer.import = ImportPolicy::All;
    peer.connect_retry_time = Duration::from_secs(1);
    peer.hold_time = Duration::from_secs(9);
    peer.keepalive_time = Duration::from_secs(3);
    peer.next_hop_v6 = Some(OUR_V6);
    peer
}

fn uses(frr: &Frr, prefix: &str, next_hops: &[&str]) {
    wait_for(
        &format!("FRR to use {next_hops:?} for {prefix}"),
        20,
        || {
            let used = frr.next_hops(prefix)?;
            anyhow::ensure!(used == next_hops, "it uses {used:?}");
            Ok(Some(()))
        },
    )
    .unwrap();
}

/// Announces, withdraws and learns both families with an FRR.
async fn exchange(ours: &Ours, frr: &Frr) {
    ours.announce(&["192.0.2.1/32", "2001:db8:1::/64"]).await;
    uses(frr, "192.0.2.1/32", &["10.77.0.1"]);
    uses(frr, "2001:db8:1::/64", &["fd77::1"]);
    ours.learns(&[
        ("203.0.113.0/24", THEIR_V4.into()),
        ("2001:db8:f::/48", THEIR_V6.into()),
    ])
    .await;

    ours.announce(&["192.0.2.1/32"]).await;
    uses(frr, "2001:db8:1::/64", &[]);
    uses(frr, "192.0.2.1/32", &["10.77.0.1"]);

    frr.configure(&[
        "router bgp 65000",
        "address-family ipv4 unicast",
        "no network 203.0.113.0/24",
        "network 198.51.100.0/24",
    ])
    .unwrap();
    ours.learns(&[
        ("198.51.100.0/24", THEIR_V4.into()),
        ("2001:db8:f::/48", THEIR_V6.into()),
    ])
    .await;

    ours.handle.withdraw_all().await.unwrap();
    uses(frr, "192.0.2.1/32", &[]);
}

#[test]
fn frr_and_we_exchange_routes_when_it_dials() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let ours = Ours::start();
        let mut config = peer();
        config.passive = true;
        ours.handle.set_peers(vec![config]).await.unwrap();
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n");
        exchange(&ours, &frr).await;
        ours.stop().await;
    });
}

#[test]
fn frr_and_we_exchange_routes_when_we_dial() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n neighbor us passive\n");
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        exchange(&ours, &frr).await;
        ours.stop().await;
    });
}

#[test]
fn frr_and_we_exchange_routes_when_both_dial_over_ipv6() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let ours = Ours::start();
        let mut config = peer();
        config.address = THEIR_V6.into();
        config.next_hop_v4 = Some(OUR_V4);
        config.next_hop_v6 = None;
        ours.handle.set_peers(vec![config]).await.unwrap();
        let frr = link.frr(" neighbor fd77::1 peer-group us\n");
        ours.announce(&["192.0.2.1/32", "2001:db8:1::/64"]).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        uses(&frr, "2001:db8:1::/64", &["fd77::1"]);
        ours.stop().await;
    });
}

#[test]
fn frr_reads_our_attributes_and_our_name() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n");
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        let announcement = Announcement {
            communities: [65001 << 16 | 7].into(),
            med: Some(50),
            prepend: 1,
            ..Announcement::default()
        };
        ours.handle
            .set_announcements(Announcements::unit(net("192.0.2.1/32"), announcement))
            .await
            .unwrap();
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        let route = frr.json("show bgp ipv4 unicast 192.0.2.1/32").unwrap();
        let path = &route["paths"][0];
        assert_eq!(path["aspath"]["string"], "65001 65001");
        assert_eq!(path["metric"], 50);
        assert_eq!(path["community"]["string"], "65001:7");
        assert_eq!(path["origin"], "IGP");
        let neighbors = frr.json("show bgp neighbors 10.77.0.1").unwrap();
        assert_eq!(neighbors["10.77.0.1"]["hostname"], "fairlead");
        ours.stop().await;
    });
}

#[test]
fn either_side_may_ask_for_the_routes_again() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n");
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        ours.announce(&["2001:db8:1::/64"]).await;
        uses(&frr, "2001:db8:1::/64", &["fd77::1"]);
        let sent = ours.handle.peers().await.unwrap()[0].counters;

        frr.vtysh("clear bgp ipv6 unicast 10.77.0.1 soft in")
            .unwrap();
        let told_again = async {
            while ours.handle.peers().await.unwrap()[0].counters.sent.updates == sent.sent.updates {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), told_again)
            .await
            .unwrap();
        uses(&frr, "2001:db8:1::/64", &["fd77::1"]);

        assert_eq!(
            ours.handle.refresh("peer", Family::Ipv4Unicast).await,
            Ok(true)
        );
        let heard_again = async {
            while ours.handle.peers().await.unwrap()[0]
                .counters
                .received
                .updates
                == sent.received.updates
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), heard_again)
            .await
            .unwrap();
        let snapshot = ours.handle.snapshot().await.unwrap();
        assert_eq!(snapshot.peers[0].established_count, 1);
        ours.stop().await;
    });
}

#[test]
fn garbage_is_answered_with_a_notification_and_frr_still_gets_its_session() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let ours = Ours::start();
        let mut config = peer();
        config.passive = true;
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        let answer = link
            .theirs
            .enter(|| {
                let mut stream = TcpStream::connect((OUR_V4, 179)).unwrap();
                stream
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .unwrap();
                stream.write_all(&[0x47; 400]).unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                answer
            })
            .unwrap();
        assert_eq!(answer[18], 1, "our OPEN comes first");
        let notification = &answer[answer.len() - 21..];
        assert_eq!(notification[18..], [3, 1, 1]);
        let frr = link.frr(" neighbor 10.77.0.1 peer-group us\n");
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        ours.stop().await;
    });
}

/// TTL of the packets of our session, as the other side receives them.
fn received_ttl(link: &Link) -> u8 {
    let mut dump = link.theirs.command("tcpdump");
    let output = dump
        .args([
            "-nvi",
            "eth0",
            "-c",
            "1",
            "src 10.77.0.1 and tcp port 179 and greater 80",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let ttl = text
        .split("ttl ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    ttl.and_then(|ttl| ttl.parse().ok())
        .unwrap_or_else(|| panic!("no TTL in {text}"))
}

#[test]
fn a_direct_peer_is_one_hop_away_and_a_distant_one_as_many_as_configured() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        // FRR's session ends at an address of its own behind the link.
        link.theirs.ip("addr add 10.88.0.2/32 dev lo").unwrap();
        link.ours.ip("route add 10.88.0.2 via 10.77.0.2").unwrap();
        let frr = link.frr(
            " neighbor 10.77.0.1 peer-group us\n neighbor us ebgp-multihop 3\n neighbor us update-source 10.88.0.2\n",
        );
        let ours = Ours::start();
        let mut config = peer();
        config.address = IpAddr::from([10, 88, 0, 2]);
        config.ebgp_multihop_ttl = 3;
        ours.handle.set_peers(vec![config]).await.unwrap();
        ours.announce(&["192.0.2.1/32"]).await;
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        assert_eq!(received_ttl(&link), 3);
        ours.handle.set_peers(Vec::new()).await.unwrap();

        frr.configure(&[
            "router bgp 65000",
            "no neighbor us ebgp-multihop",
            "no neighbor us update-source",
        ])
        .unwrap();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        uses(&frr, "192.0.2.1/32", &["10.77.0.1"]);
        assert_eq!(received_ttl(&link), 1);
        ours.stop().await;
    });
}

fn marked() -> PeerConfig {
    let mut config = peer();
    config.export = vec![ExportRule {
        prefixes: [net("10.1.1.0/24")].into(),
        communities: [64512 << 16 | 1, 0xFFFF_FF01].into(),
        large_communities: [fairlead_bgp::LargeCommunity {
            global: 64512,
            local1: 1,
            local2: 2,
        }]
        .into(),
        local_pref: Some(150),
    }];
    config
}

#[test]
fn frr_shows_what_an_export_rule_attaches() {
    if !is_root() {
        return;
    }
    for (their_as, local_pref) in [(65000, None), (65001, Some(150))] {
        let link = Link::new();
        link.run(|| async {
            let frr = link.frr_of(their_as, " neighbor 10.77.0.1 peer-group us\n");
            let ours = Ours::start();
            let mut config = marked();
            config.remote_as = their_as;
            ours.handle.set_peers(vec![config]).await.unwrap();
            ours.announce(&["10.1.1.0/24", "192.0.2.1/32"]).await;
            uses(&frr, "10.1.1.0/24", &["10.77.0.1"]);
            let route = frr.json("show bgp ipv4 unicast 10.1.1.0/24").unwrap();
            let path = &route["paths"][0];
            assert_eq!(path["community"]["string"], "64512:1 no-export");
            assert_eq!(path["largeCommunity"]["string"], "64512:1:2");
            assert_eq!(path["locPrf"].as_u64(), local_pref, "{path}");
            let route = frr.json("show bgp ipv4 unicast 192.0.2.1/32").unwrap();
            assert!(route["paths"][0]["community"].is_null(), "{route}");
            ours.stop().await;
        });
    }
}

#[test]
fn bird_and_we_exchange_routes() {
    if !is_root() {
        return;
    }
    let link = Link::new();
    link.run(|| async {
        let config = "router id 10.77.0.2;\n\
            protocol device {}\n\
            protocol static s4 { ipv4; route 203.0.113.0/24 blackhole; }\n\
            protocol static s6 { ipv6; route 2001:db8:f::/48 blackhole; }\n\
            protocol bgp fairlead {\n\
              local 10.77.0.2 as 65000; neighbor 10.77.0.1 as 65001; hold time 9; connect delay time 1;\n\
              ipv4 { import all; export where source = RTS_STATIC; next hop self; };\n\
              ipv6 { import all; export where source = RTS_STATIC; next hop address fd77::2; };\n\
            }\n";
        let bird = Bird::start(&link.theirs, &link.dir.path().join("bird"), config).unwrap();
        let ours = Ours::start();
        ours.handle.set_peers(vec![peer()]).await.unwrap();
        ours.announce(&["192.0.2.1/32", "2001:db8:1::/64"]).await;
        ours.learns(&[
            ("203.0.113.0/24", THEIR_V4.into()),
            ("2001:db8:f::/48", THEIR_V6.into()),
        ])
        .await;
        for (prefix, next_hop) in [("192.0.2.1/32", "10.77.0.1"), ("2001:db8:1::/64", "fd77::1")] {
            wait_for(prefix, 10, || {
                let shown = bird.ask(&format!("show route {prefix} all"))?;
                let told = shown.contains(&format!("BGP.next_hop: {next_hop}"));
                anyhow::ensure!(told, "{shown}");
                Ok(Some(()))
            })
            .unwrap();
        }
        ours.handle.withdraw_all().await.unwrap();
        wait_for("BIRD to lose it", 10, || {
            let shown = bird.ask("show route protocol fairlead")?;
            anyhow::ensure!(!shown.contains("192.0.2.1/32"), "{shown}");
            Ok(Some(()))
        })
        .unwrap();
        ours.stop().await;
    });
}

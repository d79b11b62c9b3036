use super::*;
use crate::api::types::PeerFamily;

fn figures() -> Figures {
    let reason = |reason: &str, verdict: &str, packets, bytes| ReasonCount {
        reason: reason.to_owned(),
        verdict: verdict.to_owned(),
        packets,
        bytes,
        about: String::new(),
    };
    let attachment = |device: &str, program: &str, state: &str, attached| Attachment {
        device: device.to_owned(),
        program: program.to_owned(),
        state: state.to_owned(),
        attached,
    };
    let route = |installed| Route {
        prefix: "10.1.2.0/24".to_owned(),
        next_hops: Vec::new(),
        installed,
        reason: String::new(),
    };
    Figures {
        reasons: vec![
            reason("no-binding", "drop", 3, 180),
            reason("service-l2", "forward", 42, 4200),
        ],
        services: vec![Service {
            name: "default/web".to_owned(),
            address: "2001:db8::1".to_owned(),
            port: 80,
            protocol: "tcp".to_owned(),
            scope: "outside",
            traffic: Traffic {
                packets: 42,
                bytes: 4200,
                new_flows: 7,
                in_transition: 3,
            },
            drops: [("service-too-big".to_owned(), 5)].into(),
            announced: true,
            backends: [("draining", 0), ("ready", 2)].into(),
        }],
        backends: vec![Backend {
            address: "10.1.1.80".to_owned(),
            port: 80,
            traffic: Traffic {
                packets: 40,
                ..Traffic::default()
            },
        }],
        peers: vec![Peer {
            local_asn: 65001,
            peer_asn: 65000,
            address: "10.0.1.1".to_owned(),
            port: 179,
            state: "Established".to_owned(),
            since_s: 7,
            hostname: None,
            bfd: Some("up".to_owned()),
            families: vec![PeerFamily {
                family: "ipv4".to_owned(),
                received: 5,
                accepted: 4,
                advertised: 2,
            }],
            hold_s: 9,
            keepalive_s: 3,
            messages_received: 1,
            messages_sent: 1,
            last_error: None,
            hint: None,
        }],
        bfd: Bfd {
            sessions: vec![BfdSession {
                peer: "10.0.1.1".to_owned(),
                local: None,
                multihop: false,
                state: "up".to_owned(),
                reason: "no diagnostic".to_owned(),
                since_s: 7,
                transmit_interval_ms: 50,
                detection_time_ms: 150,
                remote_state: "up".to_owned(),
                remote_reason: "no diagnostic".to_owned(),
                discriminator: 1,
                remote_discriminator: 2,
                ups: 2,
                failures: 1,
                packets_sent: 1000,
                packets_received: 990,
            }],
            discarded: [("forwarded".to_owned(), 4)].into(),
        },
        routes: vec![route(true), route(true), route(false)],
        tables: vec![Table {
            name: "SERVICES",
            entries: 1,
            capacity: 65536,
        }],
        attachments: vec![
            attachment("eth0", "xdp_ingress", "driver", true),
            attachment("eth0", "tc_egress", "tcx", true),
            attachment("eth1", "xdp_ingress", "not attached: no such device", false),
        ],
        conditions: [("DeviceMissing".to_owned(), 1)].into(),
    }
}

#[test]
fn a_scrape_names_everything_once_with_its_unit_and_labels() {
    let meter = Meter::new("6.12.48".to_owned());
    meter.planned(Duration::from_millis(2), 12, 1, 3);
    for (table, rows) in [("SNAT_REV", 7), ("NAT_FLOWS", 5), ("NAT_RECENT", 0)] {
        meter.alive(table, rows);
    }

    let text = text(figures(), &meter).unwrap();

    let version = env!("CARGO_PKG_VERSION");
    let wanted = include_str!("tests/scrape.txt").replace("VERSION", version);
    assert_eq!(text, wanted);
}

#[test]
fn before_the_first_round_a_scrape_says_only_what_is_known() {
    let text = text(Figures::default(), &Meter::new("6.12.48".to_owned())).unwrap();

    assert!(text.contains("fairlead_build_info{"), "{text}");
    assert!(text.contains("fairlead_plan_steps_total{result=\"failed\"} 0\n"));
    for absent in ["snat_bindings", "map_entries", "session_up", "conditions"] {
        assert!(!text.contains(absent), "{text}");
    }
}

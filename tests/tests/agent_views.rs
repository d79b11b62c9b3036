//! What `dpctl bgp` tells an operator of a real router: how a session stands, what went over it, and why not.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use anyhow::ensure;
use fairlead_tests::lab::{Lab, Node};
use fairlead_tests::netns::{STARTS, wait_for};
use fairlead_tests::root;
use serde_json::Value;

const ROUTER: &str = "10.0.1.1";

fn neighbor(node: &Node) -> Value {
    let mut found = node.ask(&["bgp", "neighbor", ROUTER]).unwrap();
    found[0].take()
}

/// Waits until what is known of the router satisfies.
fn becomes(node: &Node, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, 20, || {
        let found = neighbor(node);
        ensure!(is_so(&found), "{found:#}");
        Ok(Some(found))
    })
    .unwrap()
}

fn prefixes(rows: &Value) -> Vec<&str> {
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row["prefix"].as_str().unwrap()).collect()
}

#[test]
fn an_operator_sees_how_the_session_with_frr_stands_what_went_over_it_and_what_ended_it() {
    if !root::is_root() {
        return;
    }
    let mut lab = Lab::up("fl-views").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("bgp.jsonl").display().to_string();
    lab.nodes[0]
        .start_agent_with(&["--record", &recording])
        .unwrap();
    lab.nodes[1].start_agent().unwrap();
    lab.wait_for_next_hops(&[1, 2], STARTS).unwrap();
    lab.wait_until_settled().unwrap();
    let node = &lab.nodes[0];

    let shown = becomes(node, "all routes to be told both ways", |shown| {
        shown["gracefulRestart"]["endOfRibSent"] == true
            && shown["gracefulRestart"]["endOfRibReceived"][1] == "ipv6-unicast"
    });
    for (key, value) in [
        ("state", "Established".into()),
        ("hostname", "router".into()),
        ("peerRouterId", "10.0.0.1".into()),
        ("localAddress", "10.0.1.2".into()),
        ("establishedCount", 1.into()),
        ("lastReset", Value::Null),
        ("configuredHoldS", 9.into()),
        ("ttl", 1.into()),
        ("md5", false.into()),
        ("import", "all prefixes".into()),
        ("hints", Value::Array(Vec::new())),
    ] {
        assert_eq!(shown[key], value, "{key} of {shown:#}");
    }
    let capabilities = shown["capabilities"].as_array().unwrap();
    let has = |name: &str, side: &str| {
        let mut named = capabilities.iter().filter(|one| one["name"] == name);
        named.any(|one| one[side] == true)
    };
    for name in [
        "ipv4-unicast",
        "four-octet AS numbers",
        "route refresh",
        "extended messages",
        "graceful restart",
        "host name",
    ] {
        let both = has(name, "sent") && has(name, "received");
        assert!(both, "FRR and we can {name}: {shown:#}");
    }
    let several = "several paths from us";
    let only_it = has(several, "received") && !has(several, "sent");
    assert!(only_it, "FRR takes them: {shown:#}");
    // FRR counts what it sent; what we received is as much.
    let theirs = lab.frr.json("show bgp neighbors 10.0.1.2").unwrap();
    let stats = &theirs["10.0.1.2"]["messageStats"];
    for (index, kind, sent, received) in [
        (0, "OPEN", "opensSent", "opensRecv"),
        (1, "UPDATE", "updatesSent", "updatesRecv"),
        (2, "NOTIFICATION", "notificationsSent", "notificationsRecv"),
    ] {
        let count = &shown["messages"][index];
        assert_eq!(count["kind"], kind);
        assert_eq!(count["received"], stats[sent], "{kind}: {stats:#}");
        assert_eq!(count["sent"], stats[received], "{kind}: {stats:#}");
    }

    // What was told is what FRR has, and what it told is all here, with what became of it.
    let advertised = node.ask(&["bgp", "advertised", ROUTER]).unwrap();
    for prefix in ["10.1.1.0/24", "fd00:1:1::/64", "203.0.113.10/32"] {
        assert!(prefixes(&advertised).contains(&prefix), "{advertised:#}");
    }
    assert_eq!(advertised[0]["asPath"], "65001");
    let received = node.ask(&["bgp", "received", "router"]).unwrap();
    let count: u64 = shown["families"]
        .as_array()
        .unwrap()
        .iter()
        .map(|family| family["received"].as_u64().unwrap())
        .sum();
    assert_eq!(prefixes(&received).len() as u64, count, "{received:#}");
    let rejected: Vec<_> = received.as_array().unwrap().iter().collect();
    let own = rejected
        .iter()
        .filter(|row| row["prefix"] == "203.0.113.10/32");
    for row in own {
        assert!(
            row["reason"].as_str().unwrap().starts_with("rejected: "),
            "it is our own: {row:#}"
        );
    }
    let groups = node.ask(&["bgp", "groups"]).unwrap();
    assert_eq!(groups[0]["peers"][0], shown["name"], "{groups:#}");
    let behind = groups[0]["behind"].as_array().unwrap();
    assert!(behind.is_empty(), "{groups:#}");
    assert_eq!(shown["group"], groups[0], "{shown:#}");
    let policy = node.ask(&["bgp", "policy", ROUTER]).unwrap();
    let rules: Vec<_> = policy.as_array().unwrap().iter().collect();
    let used = rules.iter().find(|rule| rule["rule"] == "all prefixes");
    assert!(
        used.unwrap()["prefixes"].as_u64().unwrap() > 0,
        "{policy:#}"
    );
    let told = rules.iter().find(|rule| rule["does"] == "announce");
    assert_eq!(told.unwrap()["prefixes"], prefixes(&advertised).len());

    // An operator at the router ends the session, with a word.
    lab.frr
        .configure(&[
            "router bgp 65000",
            "neighbor 10.0.1.2 shutdown message rack moves",
        ])
        .unwrap();
    let down = becomes(node, "the shutdown to be seen", |shown| {
        shown["lastReset"].is_object()
    });
    let said = "received 6/9 Hard Reset: 6/2 Administrative Shutdown (\"rack moves\")";
    assert_eq!(down["lastReset"]["what"], said);
    assert_eq!(down["lastNotification"]["what"], said);
    // It expects somebody else then.
    lab.frr
        .configure(&[
            "router bgp 65000",
            "no neighbor 10.0.1.2 shutdown",
            "neighbor 10.0.1.2 remote-as 65077",
        ])
        .unwrap();
    becomes(node, "the wrong AS to be told of", |shown| {
        shown["hints"]
            .to_string()
            .contains("compare its `remote-as` with localASN")
    });
    lab.frr
        .configure(&["router bgp 65000", "neighbor 10.0.1.2 remote-as 65001"])
        .unwrap();
    let up = becomes(node, "the session to be back", |shown| {
        shown["state"] == "Established"
    });
    assert_eq!(up["establishedCount"], 2);
    assert_eq!(up["lastReset"]["what"], said, "it is remembered");
    assert_eq!(up["lastError"], Value::Null);

    let events = node.ask(&["bgp", "events"]).unwrap();
    let story: Vec<_> = events.as_array().unwrap().iter().collect();
    let at = |what: &str| story.iter().position(|event| event["what"] == what);
    let why = |what: &str| story[at(what).unwrap()]["why"].as_str().unwrap();
    assert!(at("session up") < at("session down"), "{events:#}");
    assert!(at("session down") < at("attempt failed"), "{events:#}");
    assert_eq!(why("session down"), said);
    assert_eq!(why("session up"), "AS 65000, identifier 10.0.0.1");
    assert!(
        at("route learnt").is_some() && at("route lost").is_some(),
        "{events:#}"
    );
    assert_eq!(story[at("session down").unwrap()]["peer"], ROUTER);

    // For eyes: the same, and nothing of a peer that is none.
    let text = node.dpctl(&["bgp", "neighbor", ROUTER]).unwrap();
    for words in [
        "Last reset",
        "rack moves",
        "KEEPALIVE",
        "four-octet AS numbers",
        "GTSM",
    ] {
        let is_there = text.contains(words);
        assert_eq!(is_there, words != "GTSM", "{words} in {text}");
    }
    let error = node
        .dpctl(&["bgp", "neighbor", "10.9.9.9"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no peer has the address or the name \"10.9.9.9\""),
        "{error}"
    );

    // What the agent was told comes to the same routes again.
    lab.wait_until_settled().unwrap();
    wait_for(
        "the recording to come to the routes of the agent",
        20,
        || {
            let live = node.ask(&["bgp", "routes"])?;
            let again = node.ask(&["bgp", "replay", &recording])?;
            ensure!(
                prefixes(&live).len() > 5 && live == again,
                "{live:#}\n{again:#}"
            );
            Ok(Some(()))
        },
    )
    .unwrap();
}

//! What a `BGPPeerProfile` of an agent says on the wire, as a real router reads it, and in `dpctl`.

#![expect(
    clippy::unwrap_used,
    reason = "the steps of these stories fail like their assertions"
)]

use anyhow::{Result, ensure};
use fairlead_tests::lab::{Lab, Node};
use fairlead_tests::netns::wait_for;
use fairlead_tests::root;
use serde_json::Value;

/// The address by which the router knows the first node.
const US: &str = "10.0.1.2";

/// A profile for the first node's peers.
fn profile(spec: &str) -> String {
    format!(
        "apiVersion: fairlead.io/v1alpha1\nkind: BGPPeerProfile\nmetadata: {{ name: tor }}\nspec:\n  \
         nodeSelector: {{ matchLabels: {{ rack: rack1 }} }}\n{spec}"
    )
}

/// What the router knows of its session with the first node.
fn neighbor(lab: &Lab) -> Result<Value> {
    Ok(lab.frr.json("show bgp neighbors")?[US].clone())
}

/// What the first node knows of its session with the router, once that holds.
fn shown(node: &Node, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    wait_for(what, 30, || {
        let shown = node.ask(&["bgp", "neighbor", "10.0.1.1"])?[0].clone();
        ensure!(holds(&shown), "{shown:#}");
        Ok(Some(shown))
    })
    .unwrap()
}

/// Whether we sent and received a capability.
fn capability(shown: &Value, name: &str) -> (bool, bool) {
    let all = shown["capabilities"].as_array().unwrap();
    let found = all.iter().find(|capability| capability["name"] == name);
    found.map_or((false, false), |found| {
        (found["sent"] == true, found["received"] == true)
    })
}

/// Gives the router lines of its own AS.
fn configure(lab: &Lab, lines: &[&str]) {
    let lines = [&["router bgp 65000"], lines].concat();
    lab.frr.configure(&lines).unwrap();
}

#[test]
fn a_role_is_said_and_one_that_does_not_fit_the_routers_is_refused_by_both() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-role").unwrap();
    let node = &lab.nodes[0];
    node.put(
        "profile.yaml",
        &profile("  role: peer\n  roleStrict: true\n"),
    )
    .unwrap();
    // The router says nothing of its own.
    let refused = shown(node, "a peer without a role to be refused", |shown| {
        let said = shown["lastNotification"]["what"].as_str();
        said.is_some_and(|said| said.contains("sent 2/11"))
    });
    assert_ne!(refused["state"], "Established", "{refused:#}");
    assert_eq!(
        refused["role"],
        serde_json::json!({ "ours": "peer", "strict": true, "its": [] })
    );
    assert_eq!(capability(&refused, "role"), (true, false));

    configure(&lab, &["neighbor 10.0.1.2 local-role provider"]);
    let refused = shown(node, "a provider to be no peer's peer", |shown| {
        shown["role"]["its"] == serde_json::json!(["provider"])
    });
    assert_ne!(refused["state"], "Established", "{refused:#}");

    node.put(
        "profile.yaml",
        &profile("  role: customer\n  roleStrict: true\n"),
    )
    .unwrap();
    let agreed = shown(node, "a session of customer and provider", |shown| {
        shown["state"] == "Established"
    });
    assert_eq!(
        agreed["role"],
        serde_json::json!({ "ours": "customer", "strict": true, "its": ["provider"] })
    );
    assert_eq!(capability(&agreed, "role"), (true, true));
    let theirs = neighbor(&lab).unwrap();
    assert_eq!(theirs["remoteRole"], "customer", "{theirs:#}");
    assert_eq!(
        theirs["neighborCapabilities"]["role"],
        "advertisedAndReceived"
    );
    // What a provider tells is for customers only, and says of whom it came.
    wait_for("routes of the provider to be marked", 20, || {
        let received = node.ask(&["bgp", "received", "10.0.1.1"])?;
        let is_marked = |prefix: &str| {
            let mut all = received.as_array().into_iter().flatten();
            all.any(|row| row["prefix"] == prefix && row["others"].to_string().contains("65000"))
        };
        ensure!(
            is_marked("10.1.2.0/24") && is_marked("fd00:1:2::/64"),
            "{received:#}"
        );
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn all_paths_that_the_router_tells_of_a_prefix_are_learnt_and_withdrawn_one_by_one() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-addpath").unwrap();
    let node = &lab.nodes[0];
    let prefixes = ["10.1.2.0/24", "fd00:1:2::/64"];
    // Beside the other node's path the router has one of its own.
    let own = |no: &str| {
        for (family, prefix) in ["ipv4", "ipv6"].iter().zip(prefixes) {
            let family = format!("address-family {family} unicast");
            let network = format!("{no}network {prefix}");
            let all = "neighbor 10.0.1.2 addpath-tx-all-paths";
            configure(&lab, &[&family, &network, all]);
        }
    };
    let told = |wanted: &[&str], has_identifiers: bool| {
        for prefix in prefixes {
            wait_for(&format!("{prefix} by {wanted:?}"), 30, || {
                let received = node.ask(&["bgp", "received", "10.0.1.1"])?;
                let rows: Vec<_> = received
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|row| row["prefix"] == prefix)
                    .collect();
                let mut paths: Vec<_> = rows.iter().map(|r| r["asPath"].as_str()).collect();
                paths.sort_unstable();
                let wanted: Vec<_> = wanted.iter().map(|path| Some(*path)).collect();
                ensure!(paths == wanted, "{received:#}");
                let numbers: std::collections::BTreeSet<_> = rows
                    .iter()
                    .filter_map(|row| row["pathIdentifier"].as_u64())
                    .collect();
                let wanted = if has_identifiers { rows.len() } else { 0 };
                ensure!(numbers.len() == wanted, "{rows:#?}");
                Ok(Some(()))
            })
            .unwrap();
        }
    };
    own("");
    // Its own is the better one, and all that we asked for.
    told(&["65000"], false);
    let plain = shown(node, "a session", |shown| shown["state"] == "Established");
    assert_eq!(capability(&plain, "several paths from it"), (false, true));

    node.put("profile.yaml", &profile("  addPath: true\n"))
        .unwrap();
    told(&["65000", "65000 65002"], true);
    let both = shown(node, "a session", |shown| shown["state"] == "Established");
    assert_eq!(capability(&both, "several paths from it"), (true, true));
    let theirs = neighbor(&lab).unwrap();
    for family in ["ipv4Unicast", "ipv6Unicast"] {
        let said = &theirs["neighborCapabilities"]["addPath"][family];
        assert_eq!(said["rxAdvertisedAndReceived"], true, "{theirs:#}");
    }
    own("no ");
    told(&["65000 65002"], true);
    own("");
    told(&["65000", "65000 65002"], true);
    configure(&lab, &["neighbor 10.0.2.2 shutdown"]);
    told(&["65000"], true);
}

#[test]
fn the_router_keeps_the_routes_of_an_agent_that_is_long_away_marked_and_lets_go_of_them_in_the_end()
{
    if !root::is_root() {
        return;
    }
    let mut lab = Lab::settled("fl-llgr").unwrap();
    let policy = std::fs::read_to_string(lab.nodes[0].manifests().join("bgp.yaml")).unwrap();
    let short = policy.replace("restartTimeSeconds: 60", "restartTimeSeconds: 2");
    assert_ne!(policy, short);
    lab.nodes[0].put("bgp.yaml", &short).unwrap();
    let spec = "  longLivedStaleSeconds: 8\n";
    lab.nodes[0].put("profile.yaml", &profile(spec)).unwrap();
    configure(&lab, &["bgp long-lived-graceful-restart stale-time 100"]);
    // FRR offers it from the next session on.
    lab.frr.vtysh("clear bgp 10.0.1.2").unwrap();
    let offered = shown(&lab.nodes[0], "both to offer it", |shown| {
        shown["state"] == "Established"
            && shown["gracefulRestart"]["endOfRibSent"] == true
            && capability(shown, "long-lived graceful restart") == (true, true)
    });
    let restart = &offered["gracefulRestart"];
    assert_eq!(restart["offeredS"], 2, "{offered:#}");
    assert_eq!(restart["offeredLongLivedS"], 8, "{offered:#}");
    let theirs = serde_json::json!({ "ipv4-unicast": 100, "ipv6-unicast": 100 });
    assert_eq!(restart["peerLongLivedS"], theirs, "{offered:#}");
    let theirs = neighbor(&lab).unwrap();
    assert_eq!(
        theirs["neighborCapabilities"]["longLivedGracefulRestart"],
        "advertisedAndReceived"
    );

    let [v4, v6] = lab.nodes[0].plan.pod_cidrs();
    let prefixes = [("ipv4", v4), ("ipv6", v6)];
    let communities = |family: &str, prefix: &str| {
        let route = lab
            .frr
            .json(&format!("show bgp {family} unicast {prefix}"))?;
        let path = route["paths"].as_array().and_then(|paths| paths.first());
        let text = path.map(|path| path["community"]["string"].as_str().unwrap_or_default());
        Ok::<_, anyhow::Error>(text.map(str::to_owned))
    };
    for (family, prefix) in &prefixes {
        let before = communities(family, prefix).unwrap();
        assert_eq!(before.as_deref(), Some(""), "{prefix}");
    }
    // Killed, as by the kernel when memory is short.
    lab.nodes[0].agent = None;
    for (family, prefix) in &prefixes {
        wait_for(&format!("{prefix} to be marked"), 10, || {
            let marked = communities(family, prefix)?;
            let marked = marked.ok_or_else(|| anyhow::anyhow!("it is gone"))?;
            ensure!(marked == "llgr-stale", "{marked:?}");
            Ok(Some(()))
        })
        .unwrap();
    }
    for (family, prefix) in &prefixes {
        wait_for(&format!("{prefix} to go"), 20, || {
            let left = communities(family, prefix)?;
            ensure!(left.is_none(), "{left:?}");
            Ok(Some(()))
        })
        .unwrap();
    }
}

#[test]
fn a_value_that_cannot_be_is_named_with_its_place_and_what_was_there_before_holds() {
    if !root::is_root() {
        return;
    }
    let lab = Lab::settled("fl-profile").unwrap();
    let node = &lab.nodes[0];
    let says = |what: &str, wanted: &[&str]| {
        wait_for(what, 10, || {
            let status = node.ask(&["status"])?;
            let mut conditions = status["conditions"].as_array().into_iter().flatten();
            let found = conditions.find(|one| one["object"] == "BGPPeerProfile tor");
            let text = found.map(Value::to_string).unwrap_or_default();
            for wanted in wanted {
                ensure!(text.contains(wanted), "{what}: {status:#}");
            }
            Ok(Some(()))
        })
        .unwrap();
    };
    node.put("profile.yaml", &profile("  addPath: true\n"))
        .unwrap();
    let has_add_path = |shown: &Value| capability(shown, "several paths from it").0;
    shown(node, "addPath to be offered", has_add_path);
    for (spec, wanted) in [
        (
            "  role: boss\n",
            ["spec.role: ", "provider", "profile.yaml:6"],
        ),
        (
            "  addPath: perhaps\n",
            ["spec.addPath: ", "boolean", "profile.yaml:6"],
        ),
        (
            "  longLivedStaleSeconds: 0\n",
            [
                "spec.longLivedStaleSeconds: ",
                "1 to 16777215",
                "profile.yaml:6",
            ],
        ),
        (
            "  longLivedStaleSeconds: 16777216\n",
            [
                "spec.longLivedStaleSeconds: ",
                "1 to 16777215",
                "profile.yaml:6",
            ],
        ),
        (
            "  roleStrict: true\n",
            ["spec.roleStrict: ", "role: customer", "profile.yaml:6"],
        ),
    ] {
        node.put("profile.yaml", &profile(spec)).unwrap();
        says(spec, &wanted);
        says(spec, &["stays in force"]);
        shown(node, "addPath to be offered still", has_add_path);
    }
    // A value that is good and cannot be followed here.
    let policy = std::fs::read_to_string(node.manifests().join("bgp.yaml")).unwrap();
    let plain = policy.replace("enabled: true", "enabled: false");
    assert_ne!(policy, plain);
    node.put("bgp.yaml", &plain).unwrap();
    node.put("profile.yaml", &profile("  longLivedStaleSeconds: 60\n"))
        .unwrap();
    says(
        "long-lived without graceful restart",
        &[
            "NoGracefulRestart",
            "10.0.1.1",
            "enable its gracefulRestart",
        ],
    );
    shown(node, "nothing to be offered", |shown| {
        !has_add_path(shown) && !capability(shown, "long-lived graceful restart").0
    });
}

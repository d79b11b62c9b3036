//! The CNI plugin by its protocol: environment and JSON in, links and JSON out.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

mod agent;
mod faults;
mod killed;
mod runtime;

use std::collections::BTreeSet;

use fairlead_control::host::pods::device_name;
use runtime::{NETWORK, address, new_pod, reaches, runtime};
use serde_json::{Value, json};

#[test]
fn pods_of_both_families_reach_each_other_and_leave_nothing() {
    let Some(runtime) = runtime() else { return };
    let (a, b) = (new_pod(), new_pod());

    let first = runtime.add("a", &a);
    let second = runtime.add("b", &b);

    assert_eq!(first["interfaces"][0]["name"], device_name("a/eth0"));
    assert_eq!(first["interfaces"][1]["sandbox"], json!(a.path()));
    assert_eq!(first["ips"][0]["interface"], 1);
    reaches(&a, &second).unwrap();
    reaches(&b, &first).unwrap();
    reaches(&runtime.node, &first).unwrap();
    let inside = a.run("ip -br addr show dev eth0").unwrap();
    for index in [0, 1] {
        let length = if index == 0 { 32 } else { 128 };
        let own = format!("{}/{length}", address(&first, index));
        assert!(inside.contains(&own), "{inside}");
        assert_eq!(first["ips"][index]["address"], own);
    }
    runtime.check("a", &a, &first).done();
    assert_eq!(runtime.taken().len(), 4);

    runtime.del("a", &a);
    runtime.check("b", &b, &second).done();
    runtime.del("b", &b);
    runtime.is_clean().unwrap();
    assert!(!a.run("ip -o link").unwrap().contains("eth0"));
}

#[test]
fn a_pod_is_called_as_kubernetes_calls_it() {
    let Some(runtime) = runtime() else { return };
    let pod = new_pod();
    let namespace = pod.path().display().to_string();
    let variables = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_NETNS", &namespace),
        ("CNI_IFNAME", "net1"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
        ),
    ];

    let result = runtime
        .run(&variables, &runtime.network().to_string())
        .done();

    assert_eq!(result["interfaces"][1]["name"], "net1");
    let link = runtime.node.run("ip link show type veth").unwrap();
    assert!(link.contains("alias fairlead pod default/web-0"), "{link}");
}

#[test]
fn add_and_del_may_be_repeated() {
    let Some(runtime) = runtime() else { return };
    let (pod, other) = (new_pod(), new_pod());

    let first = runtime.add("a", &pod);
    assert_eq!(runtime.add("a", &pod), first, "nothing new");
    assert_eq!(runtime.taken().len(), 2);
    // The same container with another namespace, as after a restart of its sandbox.
    let moved = runtime.add("a", &other);
    assert!(!pod.run("ip -o link").unwrap().contains("eth0"));
    reaches(&runtime.node, &moved).unwrap();
    assert_eq!(runtime.taken().len(), 2);

    for _ in 0..2 {
        runtime.del("a", &other);
        runtime.is_clean().unwrap();
    }
    // The namespace has gone, and with it the link; the runtime may not name it any more.
    for variables in [&[][..], &[("CNI_NETNS", "/run/netns/fl-plug-nowhere")]] {
        let pod = new_pod();
        runtime.add("b", &pod);
        drop(pod);
        let mut all = vec![
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "b"),
            ("CNI_IFNAME", "eth0"),
        ];
        all.extend(variables);
        runtime.run(&all, &runtime.network().to_string()).done();
        runtime.is_clean().unwrap();
    }
}

#[test]
fn twenty_pods_at_once_have_addresses_of_their_own_and_those_listed_are_kept() {
    let Some(runtime) = runtime() else { return };
    let pods: Vec<_> = (0..20).map(|_| new_pod()).collect();
    let ids: Vec<_> = (0..20).map(|number| format!("pod-{number}")).collect();

    let results: Vec<Value> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .zip(&ids)
            .map(|(pod, id)| scope.spawn(|| runtime.add(id, pod)))
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });

    let addresses: BTreeSet<_> = results
        .iter()
        .flat_map(|result| [address(result, 0), address(result, 1)])
        .collect();
    assert_eq!(addresses.len(), 40);
    for (pod, target) in pods.iter().zip(results.iter().cycle().skip(1)) {
        reaches(pod, target).unwrap();
    }
    let (kept, _) = ids.split_at(12);
    let kept: Vec<_> = kept.iter().map(String::as_str).collect();
    runtime.collect(&kept, runtime.network()).done();
    assert_eq!(runtime.links().len(), 12);
    assert_eq!(runtime.taken().len(), 24);
    for (id, (pod, result)) in kept.iter().zip(pods.iter().zip(&results)) {
        runtime.check(id, pod, result).done();
    }
    runtime.collect(&[], runtime.network()).done();
    runtime.is_clean().unwrap();
}

#[test]
fn what_the_configuration_asks_for_is_made() {
    let Some(runtime) = runtime() else { return };
    let pod = new_pod();
    let mut network = runtime.network();
    network["mtu"] = json!(1400);
    network["dns"] = json!({"nameservers": ["10.96.0.10"]});
    network["runtimeConfig"] = json!({"ips": ["10.77.0.200/24", "fd00:77::200/64"]});
    network["ipam"]["routes"] = json!([{"dst": "10.0.0.0/8"}, {"dst": "fd00::/8"}]);
    network["cniVersion"] = json!("1.1.0");

    let result = runtime.ask("ADD", "a", &pod, &network).done();

    assert_eq!(address(&result, 0), "10.77.0.200");
    assert_eq!(address(&result, 1), "fd00:77::200");
    assert_eq!(result["dns"], network["dns"]);
    assert_eq!(result["interfaces"][1]["mtu"], 1400);
    for (netns, device) in [(&pod, "eth0"), (&runtime.node, &*device_name("a/eth0"))] {
        let link = netns.run(&format!("ip link show dev {device}")).unwrap();
        assert!(link.contains("mtu 1400"), "{link}");
    }
    let routes = pod.run("ip route").unwrap() + &pod.run("ip -6 route").unwrap();
    assert!(routes.contains("10.0.0.0/8 via 169.254.1.1"), "{routes}");
    assert!(routes.contains("fd00::/8 via fe80::1"), "{routes}");
    assert!(!routes.contains("default"), "{routes}");
    network["prevResult"] = result;
    runtime.ask("CHECK", "a", &pod, &network).done();
}

#[test]
fn each_version_is_answered_in_its_own_format() {
    let Some(runtime) = runtime() else { return };
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = new_pod();
        let mut network = runtime.network();
        network["cniVersion"] = json!(version);

        let result = runtime.ask("ADD", version, &pod, &network).done();

        assert_eq!(result["cniVersion"], version);
        let family = result["ips"][1]["version"].as_str();
        assert_eq!(
            family,
            version.starts_with("0.").then_some("6"),
            "{version}"
        );
        network["prevResult"] = result;
        // CHECK is of 0.4.0.
        if !version.starts_with("0.3") {
            runtime.ask("CHECK", version, &pod, &network).done();
        }
        runtime.ask("DEL", version, &pod, &network).done();
        runtime.is_clean().unwrap();
    }
    let answer = runtime.run(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion": "0.4.0"}"#);
    assert_eq!(
        answer.done(),
        json!({
            "cniVersion": "0.4.0",
            "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        })
    );
}

#[test]
fn ipv4_alone_is_served() {
    let Some(runtime) = runtime() else { return };
    let pod = new_pod();
    let mut network = runtime.network();
    network["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/24"}]]);

    let result = runtime.ask("ADD", "a", &pod, &network).done();

    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}])
    );
    pod.run("ip route get 192.0.2.1").unwrap();
    assert_eq!(runtime.records(), ["a:eth0"]);
    assert!(runtime.dir.path().join("records").join(NETWORK).is_dir());
}

#[test]
fn the_program_installs_itself_in_one_step() {
    let Some(runtime) = runtime() else { return };
    let folder = runtime.dir.path().join("bin");
    let program = fairlead_tests::lab::binary("fairlead-cni").unwrap();

    for _ in 0..2 {
        let said = runtime
            .node
            .command(&program)
            .arg("install")
            .arg(&folder)
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    let installed = runtime.node.command(folder.join("fairlead-cni")).output();
    let said = String::from_utf8(installed.unwrap().stderr).unwrap();
    assert!(said.contains("a CNI plugin"), "{said}");
    let nowhere = runtime
        .node
        .command(&program)
        .args(["install", "/nowhere"])
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(2));
    let said = String::from_utf8(nowhere.stderr).unwrap();
    assert!(
        said.contains("installing into /nowhere: No such file"),
        "{said}"
    );
}

//! What is wrong, and how it is told.

use fairlead_control::host::pods::device_name;
use fairlead_tests::netns::Netns;
use serde_json::{Value, json};

use crate::runtime::{Answer, address, new_pod, runtime};

#[test]
fn check_names_what_differs() {
    let Some(runtime) = runtime() else { return };
    let device = device_name("a/eth0");
    let host = |words: &str| (true, words.replace("DEV", &device));
    let inside = |words: &str| (false, words.to_owned());
    for ((on_node, words), says) in [
        (
            inside("addr del A4/32 dev eth0"),
            "eth0 of the pod is without address 10.77.0.2/32",
        ),
        (
            inside("-6 addr del A6/128 dev eth0"),
            "eth0 of the pod is without address fd00:77::2/128",
        ),
        (
            inside("route del default"),
            "the pod has no route to 0.0.0.0/0 over eth0",
        ),
        (
            inside("-6 route del default"),
            "the pod has no route to ::/0 over eth0",
        ),
        (
            inside("neigh del 169.254.1.1 dev eth0"),
            "the pod does not know this node's MAC address for its gateway 169.254.1.1",
        ),
        (inside("link set eth0 down"), "eth0 is down"),
        (
            inside("link set eth0 address 02:00:00:00:00:99"),
            "has MAC address 02:00:00:00:00:99 and had",
        ),
        (
            inside("link set eth0 name eth9"),
            "the pod has no device eth0",
        ),
        (
            host("route del A4/32"),
            "this node has no route to 10.77.0.2 over DEV",
        ),
        (
            host("-6 route del A6/128"),
            "this node has no route to fd00:77::2 over DEV",
        ),
        (
            host("neigh del A6 dev DEV"),
            "this node does not know the pod's MAC address for fd00:77::2 on DEV",
        ),
    ] {
        let pod = new_pod();
        let result = runtime.add("a", &pod);
        runtime.check("a", &pod, &result).done();
        let words = words
            .replace("A4", &address(&result, 0))
            .replace("A6", &address(&result, 1));
        // Addresses are given in turn.
        let says = says
            .replace("10.77.0.2", &address(&result, 0))
            .replace("fd00:77::2", &address(&result, 1))
            .replace("DEV", &device);
        let netns: &Netns = if on_node { &runtime.node } else { &pod };
        netns.ip(&words).unwrap();

        let (code, message) = runtime.check("a", &pod, &result).refused();

        assert_eq!(code, 101, "{words}: {message}");
        assert!(message.contains(&says), "{words}: {message}");
        runtime.del("a", &pod);
        runtime.is_clean().unwrap();
    }
    let pod = new_pod();
    let result = runtime.add("a", &pod);
    runtime.del("a", &pod);
    let (code, message) = runtime.check("a", &pod, &result).refused();
    assert_eq!(
        (code, &*message),
        (3, "container a has no interface eth0 in network pods")
    );
}

#[test]
fn check_asks_the_plugin_that_gave_the_addresses() {
    let Some(runtime) = runtime() else { return };
    let pod = new_pod();
    let result = runtime.add("a", &pod);
    let store = runtime.dir.path().join("store");
    std::fs::remove_dir_all(store).unwrap();

    let (_, message) = runtime.check("a", &pod, &result).refused();

    assert!(message.starts_with("host-local: "), "{message}");
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let Some(runtime) = runtime() else { return };
    let pod = new_pod();
    pod.ip("link add eth0 type veth peer name other").unwrap();

    let (code, message) = runtime.ask("ADD", "a", &pod, &runtime.network()).refused();

    assert_eq!(code, 100);
    assert!(message.contains("has a device eth0 already"), "{message}");
    runtime.is_clean().unwrap();

    // One address is left for two pods.
    let mut narrow = runtime.network();
    narrow["ipam"]["ranges"] =
        json!([[{"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.9", "rangeEnd": "10.77.0.9"}]]);
    let (first, second) = (new_pod(), new_pod());
    let result = runtime.ask("ADD", "b", &first, &narrow).done();
    let (_, message) = runtime.ask("ADD", "c", &second, &narrow).refused();
    assert!(message.contains("no IP addresses available"), "{message}");
    assert_eq!(runtime.records(), ["b:eth0"]);
    assert_eq!(runtime.taken(), [address(&result, 0)]);
    runtime.ask("DEL", "b", &first, &narrow).done();
    runtime.is_clean().unwrap();
}

#[test]
fn a_plugin_that_gives_nonsense_is_named_and_asked_to_take_it_back() {
    let Some(runtime) = runtime() else { return };
    let pod = new_pod();
    for (gives, code, says) in [
        ("echo nonsense", 6, "scripted gave no result of CNI"),
        ("echo '{\"ips\": []}'", 102, "scripted gave no address"),
        ("exit 3", 102, "scripted ADD ended with exit status: 3"),
        (
            "echo '{\"code\": 11, \"msg\": \"later\"}'; exit 1",
            11,
            "scripted: later",
        ),
    ] {
        let log = runtime.dir.path().join("log");
        let text = format!(
            "echo $CNI_COMMAND >>{}; [ $CNI_COMMAND != ADD ] || {{ {gives}; }}",
            log.display()
        );
        let network = runtime.network_of_script(&text);

        let (found, message) = runtime.ask("ADD", "a", &pod, &network).refused();

        assert_eq!(found, code, "{message}");
        assert!(message.contains(says), "{message}");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "ADD\nDEL\n");
        std::fs::remove_file(log).unwrap();
        runtime.is_clean().unwrap();
    }
}

#[test]
fn bad_input_has_its_code_and_says_what_to_do() {
    let Some(runtime) = runtime() else { return };
    let pod = new_pod();
    let namespace = pod.path().display().to_string();
    let node = runtime.node.path().display().to_string();
    let good = runtime.network();
    let with = |key: &str, value: Value| {
        let mut network = good.clone();
        network[key] = value;
        network.to_string()
    };
    let whole = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a"),
        ("CNI_NETNS", &namespace),
        ("CNI_IFNAME", "eth0"),
    ];
    let asked = |variables: &[(&str, &str)], input: &str| -> (u64, String) {
        let mut all = whole.to_vec();
        all.retain(|(key, _)| !variables.iter().any(|(other, _)| key == other));
        all.extend(variables);
        let answer: Answer = runtime.run(&all, input);
        assert!(answer.json["cniVersion"].is_string());
        answer.refused()
    };
    let text = good.to_string();
    for (variables, input, code, says) in [
        (
            &[("CNI_COMMAND", "PLUG")][..],
            &*text,
            4,
            "there is no command PLUG",
        ),
        (
            &[("CNI_CONTAINERID", "")],
            &text,
            4,
            "CNI_CONTAINERID: missing",
        ),
        (
            &[("CNI_IFNAME", "a/b")],
            &text,
            4,
            "CNI_IFNAME: \"a/b\" is no",
        ),
        (
            &[("CNI_NETNS", "/run/netns/fl-plug-nowhere")],
            &text,
            3,
            "fl-plug-nowhere: there is no such namespace",
        ),
        (
            &[("CNI_NETNS", &node)],
            &text,
            4,
            "the node's own network namespace",
        ),
        (&[], "", 6, "is no JSON object"),
        (&[], "{", 6, "is no JSON object"),
        (
            &[],
            &with("cniVersion", json!("0.2.0")),
            1,
            "\"0.2.0\" is not spoken",
        ),
        (
            &[],
            &with("cniVersion", json!(1)),
            7,
            "cniVersion: invalid type",
        ),
        (
            &[],
            &with("name", json!("a/b")),
            7,
            "name: \"a/b\" is no name",
        ),
        (
            &[],
            &with("mut", json!(1500)),
            2,
            "mut: 1500 is not supported",
        ),
        (&[], &with("mtu", json!(70000)), 7, "mtu: 70000 is none"),
        (
            &[],
            &with("ipam", json!({})),
            7,
            "ipam.type: \"\" is no name",
        ),
        (
            &[],
            &with("ipam", json!({"type": "nowhere"})),
            7,
            "there is no program \"nowhere\" in ",
        ),
        (&[("CNI_COMMAND", "CHECK")], &text, 7, "prevResult: missing"),
        (
            &[("CNI_COMMAND", "GC")],
            &text,
            7,
            "cni.dev/valid-attachments: missing",
        ),
    ] {
        let (found, message) = asked(variables, input);

        assert_eq!(found, code, "{variables:?} {input}: {message}");
        assert!(message.contains(says), "{message}");
        runtime.is_clean().unwrap();
    }
}

#[test]
fn a_plugin_of_cni_1_1_is_asked_for_gc_and_one_of_before_is_not() {
    let Some(runtime) = runtime() else { return };
    let log = runtime.dir.path().join("log");
    let versions = |newest: &str| {
        format!(
            "echo $CNI_COMMAND >>{}; [ $CNI_COMMAND != VERSION ] || echo '{{\"supportedVersions\": [\"1.0.0\", \"{newest}\"]}}'",
            log.display()
        )
    };
    let broken =
        "[ $CNI_COMMAND != GC ] || { echo '{\"code\": 100, \"msg\": \"broken\"}'; exit 1; }";
    for (script, asked, refused) in [
        (versions("1.1.0"), "VERSION\nGC\n", false),
        (versions("0.4.0"), "VERSION\n", false),
        (
            format!("{}; {broken}", versions("1.1.0")),
            "VERSION\nGC\n",
            true,
        ),
    ] {
        let answer = runtime.collect(&[], runtime.network_of_script(&script));

        assert_eq!(std::fs::read_to_string(&log).unwrap(), asked);
        if refused {
            assert_eq!(answer.refused(), (100, "scripted: broken".to_owned()));
        } else {
            answer.done();
        }
        std::fs::remove_file(&log).unwrap();
    }
}

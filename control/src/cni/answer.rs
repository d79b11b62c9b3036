//! What a runtime is told: results in the version that it speaks.

use std::path::Path;

use serde_json::{Value, json};

use super::ipam::Given;
use super::network::{NEWEST, Network, VERSIONS};
use crate::host::pods::{Joined, Wanted, gateway};

/// The answer to VERSION.
pub fn versions(asked: Option<&str>) -> Value {
    json!({"cniVersion": asked.unwrap_or(NEWEST), "supportedVersions": VERSIONS})
}

/// The result of ADD: both ends of the link, the pod's addresses and routes, after what a plugin before us made.
pub fn added(network: &Network, wanted: &Wanted, joined: &Joined, given: &Given) -> Value {
    let mut result = network.previous().cloned().unwrap_or_else(|| json!({}));
    result["cniVersion"] = json!(network.version());
    let first = result["interfaces"].as_array().map_or(0, Vec::len);
    let sandbox: &Path = &wanted.namespace;
    let mut interfaces = vec![
        json!({"name": joined.pod.device, "mac": mac(joined.pod.mac)}),
        json!({"name": wanted.interface, "mac": mac(joined.mac_inside), "sandbox": sandbox}),
    ];
    if network.version() == NEWEST {
        for interface in &mut interfaces {
            interface["mtu"] = json!(joined.mtu);
        }
    }
    append(&mut result, "interfaces", interfaces);
    let ips = wanted.addresses.iter().map(|addr| {
        let (length, family) = if addr.is_ipv4() {
            (32, "4")
        } else {
            (128, "6")
        };
        let mut ip = json!({
            "address": format!("{addr}/{length}"),
            "gateway": gateway(addr.is_ipv4()),
            "interface": first + 1,
        });
        if network.version().starts_with("0.") {
            ip["version"] = json!(family);
        }
        ip
    });
    append(&mut result, "ips", ips.collect());
    let routes = wanted
        .destinations()
        .into_iter()
        .map(|prefix| json!({"dst": prefix, "gw": gateway(prefix.is_ipv4())}));
    append(&mut result, "routes", routes.collect());
    let dns = network.dns().or(given.dns.as_ref());
    result["dns"] = dns.cloned().unwrap_or_else(|| json!({}));
    result
}

fn append(result: &mut Value, key: &str, more: Vec<Value>) {
    match result[key].as_array_mut() {
        Some(list) => list.extend(more),
        None => result[key] = Value::Array(more),
    }
}

/// `0a:58:0a:01:00:05`.
pub fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::pods::Pod;

    fn result_of(network: &Value) -> Value {
        let network = Network::parse(network.to_string().as_bytes()).unwrap();
        let addresses = ["10.0.0.5", "fd00::5"].map(|text| text.parse().unwrap());
        let wanted = Wanted::new("web", "/run/netns/a".into(), addresses.to_vec());
        let joined = Joined {
            pod: Pod {
                name: "web".to_owned(),
                device: "fl0".to_owned(),
                index: 7,
                mac: [2, 0, 0, 0, 0, 1],
                addresses: addresses.to_vec(),
            },
            mac_inside: [2, 0, 0, 0, 0, 2],
            mtu: 1400,
            changes: Vec::new(),
        };
        added(&network, &wanted, &joined, &Given::default())
    }

    #[test]
    fn a_result_says_both_ends_addresses_and_routes() {
        let result = result_of(&json!({"cniVersion": "1.0.0", "name": "a"}));

        assert_eq!(
            result,
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [
                    {"name": "fl0", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
                ],
                "ips": [
                    {"address": "10.0.0.5/32", "gateway": "169.254.1.1", "interface": 1},
                    {"address": "fd00::5/128", "gateway": "fe80::1", "interface": 1},
                ],
                "routes": [
                    {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                    {"dst": "::/0", "gw": "fe80::1"},
                ],
                "dns": {},
            })
        );
    }

    #[test]
    fn old_versions_are_told_the_family_and_the_newest_the_mtu() {
        let old = result_of(&json!({"cniVersion": "0.4.0", "name": "a"}));
        assert_eq!(
            (&old["ips"][0]["version"], &old["ips"][1]["version"]),
            (&json!("4"), &json!("6"))
        );
        assert_eq!(old["interfaces"][0].get("mtu"), None);

        let new = result_of(&json!({"cniVersion": "1.1.0", "name": "a"}));
        assert_eq!(new["interfaces"][1]["mtu"], 1400);
        assert_eq!(new["ips"][0].get("version"), None);
    }

    #[test]
    fn what_a_plugin_before_made_stays_and_names_of_the_configuration_stand_above() {
        let result = result_of(&json!({
            "cniVersion": "1.0.0", "name": "a", "dns": {"nameservers": ["10.0.0.10"]},
            "prevResult": {
                "cniVersion": "1.0.0", "interfaces": [{"name": "other"}],
                "ips": [{"address": "192.0.2.1/24", "interface": 0}], "dns": {"domain": "x"},
            },
        }));

        assert_eq!(result["interfaces"][0]["name"], "other");
        assert_eq!(result["ips"][0]["address"], "192.0.2.1/24");
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["dns"], json!({"nameservers": ["10.0.0.10"]}));
    }
}

//! The network configuration that the agent writes for the container runtime, and takes away.
//!
//! Not for when: that is the agent's.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::PROGRAM;
use crate::config::Document;

/// Its file in the runtime's folder: before those of others, of which runtimes take the first.
pub const FILE: &str = "05-fairlead.conflist";
/// The network's name.
const NAME: &str = "fairlead";
/// Below `/run`: after a reboot no address is taken.
const ADDRESSES: &str = "/run/cni/networks";

/// Where the file of a configuration is.
pub fn path(document: &Document) -> PathBuf {
    document.kubernetes.cni.config_dir.join(FILE)
}

/// The network of a node whose pods get their addresses from these prefixes; `mtu`, in bytes, is that of its uplinks.
pub fn render(document: &Document, pod_cidrs: &BTreeSet<IpNetwork>, mtu: Option<u32>) -> String {
    let mtu = document.kubernetes.cni.mtu.or(mtu);
    // A range of its own for each family, or a pod would get an address of one of them.
    let of_family = |is_ipv4: bool| -> Vec<Value> {
        let those = pod_cidrs.iter().filter(|cidr| cidr.is_ipv4() == is_ipv4);
        those.map(|cidr| json!({"subnet": cidr})).collect()
    };
    let ranges: Vec<_> = [true, false]
        .map(of_family)
        .into_iter()
        .filter(|range| !range.is_empty())
        .collect();
    let mut plugin = json!({
        "type": PROGRAM,
        "capabilities": {"ips": true},
        "agentSocket": document.socket,
        "pinPath": document.bpf.pin_path,
        "ipam": {"type": "host-local", "ranges": ranges, "dataDir": ADDRESSES},
    });
    if let Some(mtu) = mtu {
        plugin["mtu"] = json!(mtu);
    }
    let mut plugins = vec![plugin];
    plugins.extend(document.kubernetes.cni.chained.iter().cloned());
    let list = json!({
        "cniVersion": document.kubernetes.cni.version,
        "name": NAME,
        "plugins": plugins,
    });
    format!("{list:#}\n")
}

/// Writes the file in one step; `false` when it said so already.
pub fn write(file: &Path, text: &str) -> io::Result<bool> {
    if fs::read_to_string(file).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    // Runtimes read what ends in .conf, .conflist and .json.
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, file)?;
    Ok(true)
}

/// Removes the file; `false` when there was none.
pub fn remove(file: &Path) -> io::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::network::Network;
    use super::*;

    #[test]
    fn the_plugin_understands_what_is_written_for_it() {
        let cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64", "10.245.0.0/24"];
        let cidrs = cidrs.map(|text| text.parse().unwrap()).into();

        let text = render(&Document::default(), &cidrs, Some(1450));

        let list: Value = serde_json::from_str(&text).unwrap();
        let mut first = list["plugins"][0].clone();
        assert_eq!(
            first["ipam"]["ranges"],
            json!([
                [{"subnet": "10.244.1.0/24"}, {"subnet": "10.245.0.0/24"}],
                [{"subnet": "fd00:10:244:1::/64"}],
            ])
        );
        assert_eq!(list["plugins"][1]["type"], "portmap");
        // As a runtime does.
        for key in ["cniVersion", "name"] {
            first[key] = list[key].clone();
        }
        let network = Network::parse(first.to_string().as_bytes()).unwrap();
        network.check().unwrap();
        assert_eq!((network.version(), network.mtu()), ("1.0.0", Some(1450)));
        assert_eq!(network.ipam().unwrap(), "host-local");
    }

    #[test]
    fn it_is_written_when_it_changes_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);

        assert!(write(&file, "a").unwrap());
        assert!(!write(&file, "a").unwrap());
        assert!(write(&file, "b").unwrap());

        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(remove(&file).unwrap());
        assert!(!remove(&file).unwrap());
    }
}

//! From the text of a configuration file to its [`Document`], or to an error that shows the line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fairlead_common::route::NATIVE_CIDRS;

use super::document::Document;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not a configuration document.
    #[error("{}:{line}: {message}", path.display())]
    Unparsable {
        /// The file.
        path: PathBuf,
        /// The line, from 1; 0 when unknown.
        line: u64,
        /// What is wrong, and the lines around it.
        message: String,
    },
    /// Fields contradict each other.
    #[error("{}: {message}", path.display())]
    Contradictory {
        /// The file.
        path: PathBuf,
        /// Which fields, why, and what to do.
        message: String,
    },
}

/// Reads a configuration file.
pub fn load(path: &Path) -> Result<Document, Invalid> {
    let text = std::fs::read_to_string(path).map_err(|source| Invalid::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, path)
}

/// Reads the text of a configuration file; `path` is for errors only. An empty text is all defaults.
pub fn parse(text: &str, path: &Path) -> Result<Document, Invalid> {
    let documents: Vec<Document> =
        serde_saphyr::from_multiple(text).map_err(|error| Invalid::Unparsable {
            path: path.to_owned(),
            line: error.location().map_or(0, |location| location.line()),
            message: message_and_lines(&error),
        })?;
    let mut documents = documents.into_iter();
    let document = documents.next().unwrap_or_default();
    let message = if documents.next().is_some() {
        Some("holds more than one document: keep one, without `---` between".to_owned())
    } else {
        contradiction(&document)
    };
    match message {
        None => Ok(document),
        Some(message) => Err(Invalid::Contradictory {
            path: path.to_owned(),
            message,
        }),
    }
}

/// What is wrong, then the lines around it with a caret, without the place that the caller says first.
fn message_and_lines(error: &serde_saphyr::Error) -> String {
    let rendered = error.render();
    let mut lines = rendered.lines();
    let first = lines.next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let what = match (first.starts_with("line "), first.split_once(": ")) {
        (true, Some((_, what))) => what,
        _ => first,
    };
    std::iter::once(what)
        .chain(
            lines
                .filter(|line| !line.trim_start().starts_with("-->"))
                // Beside the caret stands once more what is wrong.
                .map(|line| line.strip_suffix(what).unwrap_or(line).trim_end()),
        )
        .collect::<Vec<_>>()
        .join("\n")
}

/// The first contradiction between fields.
pub fn contradiction(document: &Document) -> Option<String> {
    let mut seen = BTreeSet::new();
    for (index, device) in document.devices.iter().enumerate() {
        if !seen.insert(&device.name) {
            return Some(format!(
                "devices[{index}].name: {:?} is listed twice; keep one",
                device.name
            ));
        }
        if device.name.is_empty() || device.name.len() > 15 {
            return Some(format!(
                "devices[{index}].name: {:?} is no interface name; use 1 to 15 characters",
                device.name
            ));
        }
    }
    let cni = &document.kubernetes.cni;
    if let Some(mtu) = cni.mtu.filter(|mtu| !(1280..=65535).contains(mtu)) {
        return Some(format!(
            "kubernetes.cni.mtu: {mtu} is none; choose 1280 to 65535 bytes, or leave it out"
        ));
    }
    let nameless = |plugin: &serde_json::Value| plugin["type"].as_str().is_none_or(str::is_empty);
    if let Some(index) = cni.chained.iter().position(nameless) {
        return Some(format!(
            "kubernetes.cni.chained[{index}]: no plugin is named; add its `type`"
        ));
    }
    if document.kubernetes.enabled && document.manifests.is_some() {
        return Some(
            "manifests and kubernetes.enabled: objects come from one place; keep one of the two"
                .to_owned(),
        );
    }
    if document.kubernetes.enabled && !cfg!(feature = "kubernetes") {
        return Some(
            "kubernetes.enabled: this program was built without the feature `kubernetes`"
                .to_owned(),
        );
    }
    let native = document.ipv4_native_routing_cidr.len();
    if native > NATIVE_CIDRS {
        return Some(format!(
            "ipv4NativeRoutingCIDR: {native} prefixes are too many; join them into at most {NATIVE_CIDRS}"
        ));
    }
    if document.masquerade.enabled && native == 0 {
        return Some(
            "masquerade.enabled: inside and outside cannot be told apart; set ipv4NativeRoutingCIDR to the prefixes that pods reach under their own addresses"
                .to_owned(),
        );
    }
    if let Some(address) = document.masquerade.egress_address
        && (address.is_unspecified() || address.is_multicast() || address.is_loopback())
    {
        return Some(format!(
            "masquerade.egressAddress: {address} is no address that others can answer to; use a unicast address of your network"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::document::{CniVersion, Import, Role, XdpMode};
    use crate::config::listen::Listen;

    fn read(text: &str) -> Document {
        parse(text, Path::new("config.yaml")).unwrap()
    }

    fn refusal(text: &str) -> String {
        parse(text, Path::new("config.yaml"))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_empty_file_is_all_defaults() {
        assert_eq!(read(""), Document::default());
        assert_eq!(read("# nothing yet\n"), Document::default());
    }

    #[test]
    fn every_field_is_read() {
        let document = read(
            r"
nodeName: node1
devices:
- {name: eth0, role: uplink}
- {name: eth1, role: lan}
bpf: {pinPath: /sys/fs/bpf/lab, xdpMode: generic}
ipv4NativeRoutingCIDR: 10.1.2.3/8
masquerade: {enabled: true, egressAddress: 192.0.2.9}
manifests: /etc/fairlead/manifests
socket: /tmp/agent.sock
bgp:
  import: {prefixes: [{prefix: 10.0.0.0/8, ge: 16, le: 24}, {prefix: 'fd00::/8'}]}
  maxPrefixes: 1000
  hostname: node1.example
kubernetes:
  cni: {enabled: true, configDir: /cni, version: 1.1.0, mtu: 9000, chained: [{type: tuning, sysctl: {a: '1'}}]}
loadBalancer: {drainWindow: 1m 30s}
telemetry: {listen: '[::1]:7000'}
",
        );

        assert_eq!(document.node_name.as_deref(), Some("node1"));
        assert_eq!(document.devices[1].role, Role::Lan);
        assert_eq!(document.bpf.xdp_mode, XdpMode::Generic);
        assert_eq!(
            document.ipv4_native_routing_cidr,
            ["10.0.0.0/8".parse().unwrap()]
        );
        assert!(document.masquerade.enabled);
        let cni = &document.kubernetes.cni;
        assert_eq!((cni.enabled, cni.mtu), (true, Some(9000)));
        assert_eq!(cni.version, CniVersion::V1_1_0);
        assert_eq!(cni.chained[0]["sysctl"]["a"], "1");
        assert_eq!(document.load_balancer.drain_window, Duration::from_secs(90));
        assert_eq!(document.telemetry.listen.to_string(), "[::1]:7000");
        assert!(document.bgp.import.accepts("10.1.0.0/16".parse().unwrap()));
        assert!(!document.bgp.import.accepts("10.0.0.0/8".parse().unwrap()));
        assert!(!document.bgp.import.accepts("10.1.1.1/32".parse().unwrap()));
        assert!(document.bgp.import.accepts("fd00::/8".parse().unwrap()));
        assert!(!document.bgp.import.accepts("11.0.0.0/16".parse().unwrap()));
    }

    #[test]
    fn import_is_none_all_or_rules() {
        assert_eq!(read("bgp: {import: none}").bgp.import, Import::None);
        assert_eq!(read("bgp: {import: all}").bgp.import, Import::All);
        assert!(refusal("bgp: {import: some}").contains("some"));
    }

    #[test]
    fn telemetry_may_be_off() {
        let document = read("telemetry: {listen: none}");

        assert_eq!(document.telemetry.listen, Listen::None);
        assert_eq!(read("").telemetry.listen.to_string(), "127.0.0.1:7179");
    }

    #[test]
    fn native_cidrs_may_be_a_list() {
        let document = read("ipv4NativeRoutingCIDR: [10.0.0.0/8, 172.16.0.0/12]");

        assert_eq!(document.ipv4_native_routing_cidr.len(), 2);
    }

    #[test]
    fn a_written_document_reads_back_equal() {
        let document = read(
            "devices: [{name: eth0, role: uplink}]\nbgp: {import: all}\ntelemetry: {listen: none}",
        );

        let text = serde_saphyr::to_string(&document).unwrap();

        assert_eq!(read(&text), document, "{text}");
    }

    #[test]
    fn an_unknown_field_names_file_and_line() {
        let message = refusal("nodeName: a\n\ndevice: []\n");

        assert!(
            message.starts_with("config.yaml:3: unknown field `device`"),
            "{message}"
        );
        assert!(message.contains("device: []"), "{message}");
    }

    #[test]
    fn a_wrong_value_names_its_line_and_what_is_allowed() {
        for (text, line, says) in [
            ("loadBalancer:\n  drainWindow: soon\n", 2, "soon"),
            (
                "ipv4NativeRoutingCIDR: ten\n",
                1,
                "\"ten\" is not an IPv4 prefix such as 10.0.0.0/8",
            ),
            ("ipv4NativeRoutingCIDR: [10.0.0.0/40]\n", 1, "invalid"),
            (
                "devices:\n- name: eth0\n  role: up\n",
                3,
                "unknown variant `up`, expected one of uplink, lan\n",
            ),
            (
                "bgp:\n  import:\n    prefixes:\n    - {prefix: 10.0.0.0/8, ge: 4}\n",
                4,
                "lengths 4 to 32 do not fit 10.0.0.0/8: choose 8 <= ge <= le <= 32",
            ),
            (
                "telemetry:\n  listen: 7179\n",
                2,
                "\"7179\" is no address with a port, such as 127.0.0.1:7179",
            ),
            (
                "kubernetes:\n  cni: {version: 1.2.0}\n",
                2,
                "unknown variant `1.2.0`, expected one of 0.4.0, 1.0.0, 1.1.0",
            ),
            ("nodeName: a\nnodeName: b\n", 2, "duplicate"),
            ("nodeName: [\n", 1, ""),
        ] {
            let message = refusal(text);

            assert!(message.contains(says), "{message}");
            assert!(
                message.starts_with(&format!("config.yaml:{line}: ")),
                "{message}"
            );
        }
    }

    #[test]
    fn contradictions_say_which_field_and_what_to_do() {
        let nine = (0..9)
            .map(|i| format!("10.{i}.0.0/16"))
            .collect::<Vec<_>>()
            .join(", ");
        for (text, says) in [
            (
                "devices: [{name: eth0, role: uplink}, {name: eth0, role: lan}]",
                "config.yaml: devices[1].name: \"eth0\" is listed twice; keep one",
            ),
            (
                "devices: [{name: a-name-that-is-too-long, role: uplink}]",
                "devices[0].name: \"a-name-that-is-too-long\" is no interface name; use 1 to 15 characters",
            ),
            (
                &format!("ipv4NativeRoutingCIDR: [{nine}]"),
                "ipv4NativeRoutingCIDR: 9 prefixes are too many; join them into at most 8",
            ),
            (
                "masquerade: {enabled: true}",
                "masquerade.enabled: inside and outside cannot be told apart; set ipv4NativeRoutingCIDR",
            ),
            (
                "masquerade: {egressAddress: 224.0.0.1}",
                "masquerade.egressAddress: 224.0.0.1 is no address that others can answer to",
            ),
            (
                "kubernetes: {cni: {mtu: 500}}",
                "config.yaml: kubernetes.cni.mtu: 500 is none; choose 1280 to 65535 bytes",
            ),
            (
                "kubernetes: {cni: {chained: [{type: portmap}, {sysctl: {}}]}}",
                "config.yaml: kubernetes.cni.chained[1]: no plugin is named; add its `type`",
            ),
            (
                "nodeName: a\n---\nnodeName: b\n",
                "holds more than one document: keep one, without `---` between",
            ),
        ] {
            let message = refusal(text);

            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let message = load(Path::new("/nonexistent/config.yaml"))
            .unwrap_err()
            .to_string();

        assert!(
            message.starts_with("/nonexistent/config.yaml: cannot read the configuration: "),
            "{message}"
        );
    }
}

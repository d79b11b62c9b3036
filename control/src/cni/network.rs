//! The network configuration: what a runtime writes to a plugin's standard input.
//!
//! Fields of the specification, and ours: `mtu`, `dataDir`, `agentSocket`, `pinPath`. The agent writes it
//! ([`super::conflist`]).

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::failure::{Code, Failure};
use super::request::{Attachment, is_identifier};
use crate::config::document::{DEFAULT_PIN_PATH, DEFAULT_SOCKET};

/// The versions of CNI that are spoken, the oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", NEWEST];
/// The newest of them: the first with GC and STATUS.
pub const NEWEST: &str = "1.1.0";
/// The newest one without GC and STATUS; what the other commands mean is the same.
const BEFORE: &str = "1.0.0";
/// Where attachments are recorded unless the configuration says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/run/cni/fairlead";

/// The smallest MTU of a link that carries IPv6 (RFC 8200 §5), and the largest packet there is, in bytes.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65535;

/// Fields that mean something to us, or to a runtime and nothing to us.
const FIELDS: [&str; 14] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "args",
    "capabilities",
    "runtimeConfig",
    "ipam",
    "dns",
    "prevResult",
    "mtu",
    "dataDir",
    "agentSocket",
    "pinPath",
];
/// What fields of the specification's own begin with.
const RESERVED: &str = "cni.dev/";

/// A network configuration.
#[derive(Clone, Debug)]
pub struct Network {
    /// As it came, for the IPAM plugin.
    document: Map<String, Value>,
    fields: Fields,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    cni_version: String,
    name: String,
    ipam: Option<IpamFields>,
    dns: Option<Value>,
    prev_result: Option<Value>,
    mtu: Option<u32>,
    data_dir: Option<PathBuf>,
    agent_socket: Option<PathBuf>,
    pin_path: Option<PathBuf>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
}

#[derive(Clone, Debug, Deserialize)]
struct IpamFields {
    #[serde(rename = "type", default)]
    kind: String,
}

impl Network {
    /// Reads a configuration.
    ///
    /// # Errors
    /// It is no JSON of this shape, of a version that is not spoken, or lacks what every command needs.
    pub fn parse(text: &[u8]) -> Result<Self, Failure> {
        let mut document: Map<String, Value> = serde_json::from_slice(text).map_err(|error| {
            Failure::new(
                Code::Decoding,
                format!(
                    "the network configuration on the standard input is no JSON object: {error}"
                ),
            )
        })?;
        document
            .entry("cniVersion")
            // As the specification has it for a configuration that does not say.
            .or_insert_with(|| "0.1.0".into());
        let fields: Fields = serde_path_to_error::deserialize(Value::Object(document.clone()))
            .map_err(|error| {
                let path = error.path().to_string();
                let field = if path == "." {
                    String::new()
                } else {
                    format!("{path}: ")
                };
                wrong(format!("{field}{}", error.into_inner()))
            })?;
        if !VERSIONS.contains(&fields.cni_version.as_str()) {
            return Err(Failure::new(
                Code::IncompatibleVersion,
                format!(
                    "cniVersion: {:?} is not spoken here; use one of {}",
                    fields.cni_version,
                    VERSIONS.join(", ")
                ),
            ));
        }
        if !is_identifier(&fields.name) {
            return Err(wrong(format!(
                "name: {:?} is no name of a network; it is letters, digits, `_`, `.` and `-`, the first a letter or digit",
                fields.name
            )));
        }
        Ok(Self { document, fields })
    }

    /// Says what would be ignored, to somebody who believes that it is not.
    ///
    /// # Errors
    /// A field that means nothing here, or a value that cannot be.
    pub fn check(&self) -> Result<(), Failure> {
        for (key, value) in &self.document {
            let is_known = FIELDS.contains(&key.as_str()) || key.starts_with(RESERVED);
            // What `ptp` and `bridge` have; the agent masquerades (`masquerade`).
            let is_moot = key == "ipMasq" && *value == Value::Bool(false);
            if !is_known && !is_moot {
                return Err(Failure::new(
                    Code::UnsupportedField,
                    format!("{key}: {value} is not supported; leave it out"),
                ));
            }
        }
        match self.fields.mtu {
            Some(mtu) if !MTU.contains(&mtu) => Err(wrong(format!(
                "mtu: {mtu} is none; choose {} to {} bytes",
                MTU.start(),
                MTU.end()
            ))),
            _ => Ok(()),
        }
    }

    /// The version that the answer is in.
    pub fn version(&self) -> &str {
        &self.fields.cni_version
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.fields.name
    }

    /// The IPAM plugin.
    ///
    /// # Errors
    /// None is named, or by a path.
    pub fn ipam(&self) -> Result<&str, Failure> {
        let kind = self.fields.ipam.as_ref().map(|ipam| ipam.kind.as_str());
        match kind {
            Some(kind) if is_identifier(kind) => Ok(kind),
            Some(kind) => Err(wrong(format!(
                "ipam.type: {kind:?} is no name of a plugin, such as \"host-local\""
            ))),
            None => Err(wrong(
                "ipam: missing; name the plugin that gives addresses, such as {\"type\": \"host-local\", …}"
                    .to_owned(),
            )),
        }
    }

    /// What the configuration says about names, where it says something.
    pub fn dns(&self) -> Option<&Value> {
        let dns = self.fields.dns.as_ref()?;
        let is_empty = dns.as_object().is_none_or(Map::is_empty);
        (!is_empty).then_some(dns)
    }

    /// The result of the plugin before, or of the ADD that CHECK and DEL are about.
    pub fn previous(&self) -> Option<&Value> {
        self.fields.prev_result.as_ref()
    }

    /// The largest packet of a pod's link, in bytes.
    pub fn mtu(&self) -> Option<u32> {
        self.fields.mtu
    }

    /// Where this network's attachments are recorded.
    pub fn records(&self) -> PathBuf {
        let folder = self.fields.data_dir.clone();
        folder
            .unwrap_or_else(|| DEFAULT_DATA_DIR.into())
            .join(&self.fields.name)
    }

    /// The agent's socket.
    pub fn agent_socket(&self) -> PathBuf {
        let socket = self.fields.agent_socket.clone();
        socket.unwrap_or_else(|| DEFAULT_SOCKET.into())
    }

    /// Where the agent pins what it programs.
    pub fn pin_path(&self) -> PathBuf {
        let path = self.fields.pin_path.clone();
        path.unwrap_or_else(|| DEFAULT_PIN_PATH.into())
    }

    /// The attachments that are to stay.
    ///
    /// # Errors
    /// The runtime has not said: then none may be taken for stale.
    pub fn valid_attachments(&self) -> Result<&[Attachment], Failure> {
        self.fields.valid.as_deref().ok_or_else(|| {
            wrong(
                "cni.dev/valid-attachments: missing; GC needs the list of what is to stay"
                    .to_owned(),
            )
        })
    }

    /// Whether the runtime speaks a version with GC and STATUS.
    pub fn has_garbage_collection(&self) -> bool {
        self.fields.cni_version == NEWEST
    }

    /// The configuration for another plugin, as it came.
    pub fn text(&self) -> Vec<u8> {
        Value::Object(self.document.clone())
            .to_string()
            .into_bytes()
    }

    /// The configuration for another plugin, which may be older than the runtime: in the newest version that all
    /// plugins of today speak. For commands that mean the same in it.
    pub fn text_for_older(&self) -> Vec<u8> {
        let mut document = self.document.clone();
        if self.has_garbage_collection() {
            document.insert("cniVersion".to_owned(), BEFORE.into());
            if let Some(Value::Object(previous)) = document.get_mut("prevResult") {
                previous.insert("cniVersion".to_owned(), BEFORE.into());
            }
        }
        Value::Object(document).to_string().into_bytes()
    }
}

/// The version that a configuration names, be the rest as it may.
pub fn version_of(text: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(text).ok()?;
    Some(document.get("cniVersion")?.as_str()?.to_owned())
}

fn wrong(message: String) -> Failure {
    Failure::new(Code::Configuration, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(document: &Value) -> Result<Network, Failure> {
        Network::parse(document.to_string().as_bytes())
    }

    #[test]
    fn mistakes_have_their_code_and_name_the_field() {
        for (document, code, says) in [
            (json!([]), 6, "is no JSON object"),
            (
                json!({"name": "a"}),
                1,
                "cniVersion: \"0.1.0\" is not spoken here",
            ),
            (json!({"cniVersion": "1.0.0"}), 7, "missing field `name`"),
            (
                json!({"cniVersion": "2.0.0", "name": "a"}),
                1,
                "use one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "../a"}),
                7,
                "name: \"../a\"",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "a", "mtu": "big"}),
                7,
                "mtu: invalid type: string \"big\"",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "a", "mtu": 1000}),
                7,
                "mtu: 1000 is none; choose 1280 to 65535 bytes",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "a", "ipMasq": true}),
                2,
                "ipMasq: true is not supported",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "a"}),
                7,
                "ipam: missing; name the plugin",
            ),
            (
                json!({"cniVersion": "1.0.0", "name": "a", "ipam": {"type": "/bin/sh"}}),
                7,
                "ipam.type: \"/bin/sh\" is no name of a plugin",
            ),
        ] {
            let failure = parse(&document)
                .and_then(|network| network.check().map(|()| network))
                .and_then(|network| network.ipam().map(str::to_owned))
                .unwrap_err();
            assert_eq!(failure.code.number(), code, "{failure}");
            assert!(failure.message.contains(says), "{failure}");
        }
    }

    #[test]
    fn an_older_plugin_is_asked_in_a_version_that_it_knows() {
        let network = parse(&json!({
            "cniVersion": "1.1.0", "name": "a", "prevResult": {"cniVersion": "1.1.0", "ips": []},
            "cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}],
        }))
        .unwrap();

        let older: Value = serde_json::from_slice(&network.text_for_older()).unwrap();

        assert_eq!(older["cniVersion"], "1.0.0");
        assert_eq!(older["prevResult"]["cniVersion"], "1.0.0");
        assert_eq!(network.valid_attachments().unwrap()[0].container, "b");
        let same: Value = serde_json::from_slice(&network.text()).unwrap();
        assert_eq!(same["cniVersion"], "1.1.0");
    }

    #[test]
    fn without_a_list_of_what_stays_nothing_is_stale() {
        let network = parse(&json!({"cniVersion": "1.1.0", "name": "a"})).unwrap();

        assert_eq!(network.valid_attachments().unwrap_err().code.number(), 7);
    }
}

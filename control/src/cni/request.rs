//! What a runtime asks, by the environment.
//!
//! Not for the network configuration, which comes by the standard input ([`super::network`]).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use super::failure::{Code, Failure};

/// The longest container id, in bytes: with an interface's name it is the name of a file.
const LONGEST_ID: usize = 200;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Gives a container its network.
    Add,
    /// Takes it away.
    Del,
    /// Says whether it still is as it was made.
    Check,
    /// Says whether containers can be given a network.
    Status,
    /// Takes away what belongs to containers that are no more.
    Gc,
    /// Says which versions are spoken.
    Version,
}

impl Command {
    /// Reads `CNI_COMMAND`.
    pub fn parse(text: &OsStr) -> Result<Self, Failure> {
        match text.to_str() {
            Some("ADD") => Ok(Self::Add),
            Some("DEL") => Ok(Self::Del),
            Some("CHECK") => Ok(Self::Check),
            Some("STATUS") => Ok(Self::Status),
            Some("GC") => Ok(Self::Gc),
            Some("VERSION") => Ok(Self::Version),
            _ => Err(Failure::new(
                Code::Environment,
                format!(
                    "CNI_COMMAND: there is no command {}; there are ADD, DEL, CHECK, STATUS, GC and VERSION",
                    text.display()
                ),
            )),
        }
    }

    const fn names_a_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    const fn needs_a_namespace(self) -> bool {
        matches!(self, Self::Add | Self::Check)
    }
}

/// A container's attachment to a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
pub struct Attachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container: String,
    /// The container's interface.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// What a runtime asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of which attachment; absent where the whole network is meant.
    pub attachment: Option<Attachment>,
    /// The container's network namespace, where it has one (yet).
    pub namespace: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub arguments: BTreeMap<String, String>,
    /// Where plugins are.
    pub path: Vec<PathBuf>,
}

impl Request {
    /// Reads the variables that a command needs.
    ///
    /// # Errors
    /// One is missing or wrong; with the code for that.
    pub fn read(
        command: Command,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        let given = |name: &str| variable(name).filter(|text| !text.is_empty());
        let needed = |name: &str| {
            given(name).ok_or_else(|| {
                Failure::new(
                    Code::Environment,
                    format!("{name}: missing; the container runtime sets it"),
                )
            })
        };
        let attachment = if command.names_a_container() {
            let attachment = Attachment {
                container: needed("CNI_CONTAINERID")?,
                interface: needed("CNI_IFNAME")?,
            };
            attachment.check()?;
            Some(attachment)
        } else {
            None
        };
        let namespace = if command.needs_a_namespace() {
            Some(needed("CNI_NETNS")?)
        } else {
            given("CNI_NETNS")
        };
        let path = if command == Command::Status {
            given("CNI_PATH").unwrap_or_default()
        } else {
            needed("CNI_PATH")?
        };
        Ok(Self {
            attachment,
            namespace: namespace.map(PathBuf::from),
            arguments: arguments(given("CNI_ARGS").as_deref())?,
            path: std::env::split_paths(&path).collect(),
        })
    }

    /// What people call the container: its pod, where Kubernetes says which.
    pub fn pod_name(&self) -> Option<String> {
        let namespace = self.arguments.get("K8S_POD_NAMESPACE")?;
        let pod = self.arguments.get("K8S_POD_NAME")?;
        Some(format!("{namespace}/{pod}"))
    }
}

impl Attachment {
    fn check(&self) -> Result<(), Failure> {
        let wrong = |message: String| Err(Failure::new(Code::Environment, message));
        let Self {
            container,
            interface,
        } = self;
        if !is_identifier(container) || container.len() > LONGEST_ID {
            return wrong(format!(
                "CNI_CONTAINERID: {container:?} is no container id; it is 1 to {LONGEST_ID} letters, digits, `_`, `.` and `-`, the first a letter or digit"
            ));
        }
        let is_name = interface.len() < libc::IFNAMSIZ
            && ![".", ".."].contains(&interface.as_str())
            && !interface.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if !is_name {
            return wrong(format!(
                "CNI_IFNAME: {interface:?} is no interface name; it has 1 to 15 characters, no `/`, `:` or space"
            ));
        }
        Ok(())
    }
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`: names of networks and ids of containers.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// `FOO=BAR;ABC=123`.
fn arguments(text: Option<&str>) -> Result<BTreeMap<String, String>, Failure> {
    let pairs = text
        .unwrap_or_default()
        .split(';')
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Failure::new(
                Code::Environment,
                format!("CNI_ARGS: {pair:?} is no pair such as FOO=BAR"),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(command: Command, variables: &[(&str, &str)]) -> Result<Request, Failure> {
        Request::read(command, |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const WHOLE: [(&str, &str); 5] = [
        ("CNI_CONTAINERID", "abc"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
        ),
    ];

    #[test]
    fn a_whole_environment_is_read() {
        let request = read(Command::Add, &WHOLE).unwrap();

        assert_eq!(request.attachment.as_ref().unwrap().container, "abc");
        assert_eq!(request.path.len(), 2);
        assert_eq!(request.pod_name().as_deref(), Some("default/web-0"));
    }

    #[test]
    fn a_command_needs_what_it_needs_and_no_more() {
        for (command, needed) in [
            (
                Command::Add,
                &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"][..],
            ),
            (
                Command::Check,
                &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"],
            ),
            (Command::Del, &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]),
            (Command::Gc, &["CNI_PATH"]),
            (Command::Status, &[]),
        ] {
            for (name, _) in WHOLE {
                let without: Vec<_> = WHOLE.into_iter().filter(|(key, _)| *key != name).collect();
                let read = read(command, &without);
                assert_eq!(read.is_err(), needed.contains(&name), "{command:?} {name}");
                if let Err(failure) = read {
                    assert_eq!(failure.code, Code::Environment);
                    assert!(failure.message.starts_with(name), "{failure}");
                }
            }
        }
    }

    #[test]
    fn what_would_leave_a_folder_or_name_no_device_is_refused() {
        for (name, value) in [
            ("CNI_CONTAINERID", "../a"),
            ("CNI_CONTAINERID", ".a"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", &"a".repeat(201)),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a:b"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_ARGS", "FOO"),
        ] {
            let mut variables = WHOLE.to_vec();
            variables.retain(|(key, _)| *key != name);
            variables.push((name, value));
            let failure = read(Command::Add, &variables).unwrap_err();
            assert_eq!(failure.code.number(), 4);
            assert!(failure.message.starts_with(name), "{failure}");
        }
    }
}

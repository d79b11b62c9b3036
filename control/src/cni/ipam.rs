//! The plugin that gives addresses: found, started, understood (CNI 1.1 §4, "Plugin delegation").
//!
//! Not for choosing addresses.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failure::{Code, Failure};
use super::network::{NEWEST, Network};
use super::request::{Attachment, Request};

/// What an IPAM plugin gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Addresses, with the length of the prefix that they are from.
    #[serde(default)]
    pub ips: Vec<Address>,
    /// Where the pod's routes lead.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// How the pod asks for names.
    #[serde(default)]
    pub dns: Option<Value>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// It, and the length of its prefix.
    pub address: IpNetwork,
}

/// A route. Its gateway, where it names one, is not the pod's: everything goes by the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads.
    pub dst: IpNetwork,
}

/// The answer to VERSION.
#[derive(Debug, Default, Deserialize)]
struct Spoken {
    #[serde(rename = "supportedVersions", default)]
    versions: Vec<String>,
}

impl Given {
    /// The addresses alone.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.ips.iter().map(|ip| ip.address.ip()).collect()
    }
}

/// An IPAM plugin of a network.
#[derive(Clone, Debug)]
pub struct Ipam<'a> {
    name: &'a str,
    program: PathBuf,
    network: &'a Network,
}

impl<'a> Ipam<'a> {
    /// Finds the plugin.
    ///
    /// # Errors
    /// The network names none, or it is nowhere in `CNI_PATH`.
    pub fn find(network: &'a Network, request: &Request) -> Result<Self, Failure> {
        let name = network.ipam()?;
        let mut candidates = request.path.iter().map(|folder| folder.join(name));
        let Some(program) = candidates.find(|file| file.is_file()) else {
            let folders: Vec<_> = request
                .path
                .iter()
                .map(|folder| folder.display().to_string())
                .collect();
            return Err(Failure::new(
                Code::Configuration,
                format!(
                    "ipam.type: there is no program {name:?} in {} (CNI_PATH); install it there",
                    folders.join(", ")
                ),
            ));
        };
        Ok(Self {
            name,
            program,
            network,
        })
    }

    /// Takes addresses for the attachment that the environment names.
    ///
    /// # Errors
    /// The plugin refused, or gave no address.
    pub fn add(&self) -> Result<Given, Failure> {
        let said = self.run("ADD", None, &self.network.text_for_older())?;
        let given: Given = serde_json::from_slice(&said).map_err(|error| {
            Failure::new(
                Code::Decoding,
                format!("{} gave no result of CNI: {error}", self.name),
            )
            .with(String::from_utf8_lossy(&said).trim())
        })?;
        if given.ips.is_empty() {
            return Err(Failure::new(
                Code::Ipam,
                format!("{} gave no address", self.name),
            ));
        }
        Ok(given)
    }

    /// Gives an attachment's addresses back; none held is fine.
    pub fn del(&self, attachment: &Attachment) -> Result<(), Failure> {
        self.run("DEL", Some(attachment), &self.network.text_for_older())
            .map(drop)
    }

    /// Asks whether the attachment that the environment names still has its addresses.
    pub fn check(&self) -> Result<(), Failure> {
        self.run("CHECK", None, &self.network.text_for_older())
            .map(drop)
    }

    /// Asks for a command of CNI 1.1, unless the plugin is older: then it has no answer.
    pub fn ask_newer(&self, command: &str) -> Result<(), Failure> {
        let said = self.run("VERSION", None, &self.network.text())?;
        let spoken: Spoken = serde_json::from_slice(&said).unwrap_or_default();
        if spoken.versions.iter().any(|version| version == NEWEST) {
            self.run(command, None, &self.network.text())?;
        }
        Ok(())
    }

    /// Starts the plugin with our own environment, but the command and, where given, another attachment.
    fn run(
        &self,
        command: &str,
        attachment: Option<&Attachment>,
        input: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let trouble = |error: std::io::Error| {
            Failure::new(
                Code::Io,
                format!("starting {}: {error}", self.program.display()),
            )
        };
        let mut plugin = Command::new(&self.program);
        plugin
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(attachment) = attachment {
            plugin
                .env("CNI_CONTAINERID", &attachment.container)
                .env("CNI_IFNAME", &attachment.interface);
            // A plugin of CNI 0.4 wants the variable, be there a namespace or not.
            if std::env::var_os("CNI_NETNS").is_none() {
                plugin.env("CNI_NETNS", "");
            }
        }
        let mut running = plugin.spawn().map_err(trouble)?;
        if let Some(mut stdin) = running.stdin.take() {
            match stdin.write_all(input) {
                // It ended without reading: its exit says why.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                other => other.map_err(trouble)?,
            }
        }
        let output = running.wait_with_output().map_err(trouble)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(
            Failure::of_plugin(self.name, &output.stdout).unwrap_or_else(|| {
                let said = [output.stdout, output.stderr].concat();
                Failure::new(
                    Code::Ipam,
                    format!("{} {command} ended with {}", self.name, output.status),
                )
                .with(String::from_utf8_lossy(&said).trim())
            }),
        )
    }
}

//! `fairlead`'s command line: what was typed -> what is meant -> done.
//!
//! Exit codes: 0 done, 1 the answer is no, 2 usage or error, 78 (`EX_CONFIG`) a configuration that
//! cannot be read, so that a service manager does not restart into the same error.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::config::document::{DEFAULT_CONFIG, DEFAULT_PIN_PATH, Device, Document, Role, XdpMode};
use crate::config::listen::Listen;
use crate::config::load::{self, Invalid};
use crate::desired::Condition;
use crate::source::resource::definition::definitions;
use crate::{agent, telemetry};

/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIG: u8 = 78;

/// Balances, translates and routes in the kernel, and speaks BGP with the routers around it.
#[derive(Debug, Parser)]
#[command(
    name = "fairlead",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Fairlead {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the agent; on SIGTERM it leaves, and what it programmed keeps forwarding
    Run(Box<RunFlags>),
    /// Reads the configuration and the manifests, says what is wrong with them and exits
    CheckConfig(Box<Overrides>),
    /// Removes programs, tables, learnt routes: everything that an agent left; traffic stops
    Cleanup(Box<Overrides>),
    /// Prints the definitions of Fairlead's own kinds, for `kubectl apply -f -`
    Crds,
    /// Attaches network namespaces as pods
    #[command(subcommand)]
    Pod(PodVerb),
    /// Unwraps packets of balancers on a backend's interface
    #[command(subcommand)]
    Decap(DecapVerb),
}

/// Flags of a running agent.
#[derive(Args, Debug)]
struct RunFlags {
    #[command(flatten)]
    overrides: Overrides,
    /// Writes everything that the BGP speakers are told into a file, in the place of what it held;
    /// `dpctl bgp replay` reads it
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// Flags that stand above the configuration file.
#[derive(Args, Debug)]
struct Overrides {
    /// The configuration
    #[arg(long, env = "FAIRLEAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name
    #[arg(long, env = "FAIRLEAD_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// The folder of manifests to watch
    #[arg(long, env = "FAIRLEAD_MANIFESTS", value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// An uplink, towards the routers; may be given several times
    #[arg(long = "device", value_name = "IFACE")]
    devices: Vec<String>,
    /// The unix socket for dpctl
    #[arg(long, env = "FAIRLEAD_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where programs, tables and links are pinned (on a bpf file system)
    #[arg(long, env = "FAIRLEAD_PIN_PATH", value_name = "DIR")]
    pin_path: Option<PathBuf>,
    /// How XDP programs run
    #[arg(long, value_enum, value_name = "MODE")]
    xdp_mode: Option<XdpMode>,
    /// Where probes and metrics are served: an address and port, or `none`
    #[arg(long, env = "FAIRLEAD_TELEMETRY_LISTEN", value_name = "ADDR:PORT")]
    telemetry_listen: Option<Listen>,
    /// Announces nothing any more when the agent is stopped (default: peers keep the routes)
    #[arg(long)]
    withdraw_on_exit: bool,
    /// Log lines as JSON (default: when stdout is not a terminal)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    log_json: Option<bool>,
}

#[derive(Debug, Subcommand)]
enum PodVerb {
    /// Gives a network namespace a link to this node, addresses and default routes
    Add {
        /// The pod's name
        name: String,
        /// Its network namespace: a name of `ip netns`, or a path
        #[arg(long)]
        netns: String,
        /// An address of the pod, IPv4 or IPv6; may be given several times
        #[arg(long = "ip", required = true, value_name = "ADDRESS")]
        ips: Vec<IpAddr>,
        #[command(flatten)]
        pins: Pins,
    },
    /// Takes the link away again
    Del {
        /// The pod's name
        name: String,
        #[command(flatten)]
        pins: Pins,
    },
    /// Lists the pods of this node
    List,
}

#[derive(Debug, Subcommand)]
enum DecapVerb {
    /// Attaches the unwrapping program
    Attach {
        /// The interface on which encapsulated packets arrive
        interface: String,
        /// A service address that this backend answers for; may be given several times
        #[arg(long = "address", required = true)]
        addresses: Vec<IpAddr>,
        /// How the program runs
        #[arg(long, value_enum, value_name = "MODE", default_value = "auto")]
        xdp_mode: XdpMode,
        #[command(flatten)]
        pins: Pins,
    },
    /// Detaches it
    Detach {
        /// The interface
        interface: String,
        #[command(flatten)]
        pins: Pins,
    },
}

#[derive(Args, Debug)]
struct Pins {
    /// Where the agent pins its programs
    #[arg(long, env = "FAIRLEAD_PIN_PATH", value_name = "DIR", default_value = DEFAULT_PIN_PATH)]
    pin_path: PathBuf,
}

/// Runs `fairlead` on the process's arguments.
pub fn main() -> ExitCode {
    match run(Fairlead::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to do when stderr is closed as well.
            let _ = writeln!(
                std::io::stderr(),
                "fairlead: {}",
                telemetry::cause::line(&error)
            );
            match error.downcast_ref::<Invalid>() {
                Some(_) => ExitCode::from(BAD_CONFIG),
                None => ExitCode::from(2),
            }
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Run(flags) => {
            let RunFlags { overrides, record } = *flags;
            let document = overrides.document()?;
            telemetry::logs::start(overrides.log_json);
            let running = agent::run(document, overrides.withdraw_on_exit, record.as_deref());
            runtime()?.block_on(running)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::CheckConfig(flags) => check(&flags.document()?),
        Verb::Cleanup(flags) => {
            let document = flags.document()?;
            say(&runtime()?.block_on(agent::cleanup(&document))?)
        }
        Verb::Crds => {
            let text = definitions().context("writing the definitions")?;
            say(&[text.trim_end().to_owned()])
        }
        Verb::Pod(PodVerb::Add {
            name,
            netns,
            ips,
            pins,
        }) => say(&runtime()?.block_on(agent::add_pod(&pins.pin_path, &name, &netns, &ips))?),
        Verb::Pod(PodVerb::Del { name, pins }) => {
            say(&[runtime()?.block_on(agent::remove_pod(&pins.pin_path, &name))?])
        }
        Verb::Pod(PodVerb::List) => {
            let pods = runtime()?.block_on(agent::list_pods())?;
            if pods.is_empty() {
                // Nothing is left to do when stderr is closed.
                let _ = writeln!(
                    std::io::stderr(),
                    "no pods; `fairlead pod add` joins a network namespace"
                );
            }
            say(&pods)
        }
        Verb::Decap(DecapVerb::Attach {
            interface,
            addresses,
            xdp_mode,
            pins,
        }) => {
            let pins = &pins.pin_path;
            say(&[agent::attach_decap(pins, &interface, &addresses, xdp_mode)?])
        }
        Verb::Decap(DecapVerb::Detach { interface, pins }) => {
            say(&[agent::detach_decap(&pins.pin_path, &interface)?])
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the async runtime")
}

/// Says what is wrong with the manifests; the configuration itself has been read already.
fn check(document: &Document) -> Result<ExitCode> {
    let conditions = agent::check_manifests(document)?;
    let mut lines: Vec<String> = conditions.iter().map(fault).collect();
    lines.sort();
    let good = lines.is_empty();
    if good {
        lines.push(match &document.manifests {
            Some(folder) => format!(
                "the configuration and the manifests in {} are good",
                folder.display()
            ),
            None => "the configuration is good; it names no folder of manifests".to_owned(),
        });
    }
    say(&lines)?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Where, what, why: `web.yaml:6: Service default/web (UnknownField): …`.
fn fault(c: &Condition) -> String {
    let what = format!("{} ({}): {}", c.object, c.reason, c.message);
    if c.origin.is_empty() {
        what
    } else if c.origin.starts_with(&c.object) {
        // A whole file: its name is not said twice.
        format!("{}: {}: {}", c.origin, c.reason, c.message)
    } else {
        format!("{}: {what}", c.origin)
    }
}

fn say(lines: &[String]) -> Result<ExitCode> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that went away has read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

impl Overrides {
    /// The configuration with these flags above it. A file that was named must be there; the default
    /// one need not.
    fn document(&self) -> Result<Document> {
        let mut document = match &self.config {
            Some(path) => load::load(path)?,
            None if Path::new(DEFAULT_CONFIG).exists() => load::load(Path::new(DEFAULT_CONFIG))?,
            None => Document::default(),
        };
        if let Some(name) = &self.node_name {
            document.node_name = Some(name.clone());
        }
        if let Some(folder) = &self.manifests {
            document.manifests = Some(folder.clone());
        }
        if !self.devices.is_empty() {
            let uplink = |name: &String| Device {
                name: name.clone(),
                role: Role::Uplink,
            };
            document.devices = self.devices.iter().map(uplink).collect();
        }
        if let Some(socket) = &self.socket {
            document.socket.clone_from(socket);
        }
        if let Some(path) = &self.pin_path {
            document.bpf.pin_path.clone_from(path);
        }
        if let Some(mode) = self.xdp_mode {
            document.bpf.xdp_mode = mode;
        }
        if let Some(listen) = self.telemetry_listen {
            document.telemetry.listen = listen;
        }
        match load::contradiction(&document) {
            None => Ok(document),
            Some(message) => Err(Invalid::Contradictory {
                path: PathBuf::from("command line"),
                message,
            }
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::document::DEFAULT_SOCKET;

    fn overrides(words: &[&str]) -> Overrides {
        let words = [&["fairlead", "check-config"], words].concat();
        let Verb::CheckConfig(flags) = Fairlead::parse_from(words).verb else {
            panic!("another verb");
        };
        *flags
    }

    #[test]
    fn the_command_line_is_consistent() {
        Fairlead::command().debug_assert();
    }

    #[test]
    fn a_flag_stands_above_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "nodeName: from-file\nsocket: /from/file\n").unwrap();

        let document = overrides(&[
            "--config",
            file.to_str().unwrap(),
            "--node-name",
            "flag",
            "--device",
            "eth7",
        ])
        .document()
        .unwrap();

        assert_eq!(document.node_name.as_deref(), Some("flag"));
        assert_eq!(document.socket, Path::new("/from/file"));
        assert_eq!(document.devices[0].name, "eth7");
    }

    #[test]
    fn the_unit_starts_what_this_command_line_means() {
        let unit = include_str!("../packaging/fairlead.service");
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key));

        let words: Vec<_> = value("ExecStart=").unwrap().split(' ').collect();
        assert_eq!(
            Path::new(words[0]).file_name().unwrap(),
            Fairlead::command().get_name()
        );
        let verb = Fairlead::try_parse_from(&words).unwrap().verb;
        assert!(matches!(verb, Verb::Run(_)), "{verb:?}");
        let fatal = value("RestartPreventExitStatus=").unwrap();
        assert_eq!(fatal, BAD_CONFIG.to_string());
        // Relative to /etc and /run.
        for (key, default) in [
            ("ConfigurationDirectory=", DEFAULT_CONFIG),
            ("RuntimeDirectory=", DEFAULT_SOCKET),
        ] {
            let folder = Path::new(default).parent().unwrap();
            assert_eq!(folder.file_name().unwrap(), value(key).unwrap());
        }
        assert_eq!(value("Type="), Some("notify"));

        // systemd's own opinion, where it is installed; the binary is not, so another stands for it.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fairlead.service");
        let here = std::env::current_exe().unwrap();
        std::fs::write(&file, unit.replace(words[0], here.to_str().unwrap())).unwrap();
        let verify = std::process::Command::new("systemd-analyze")
            .arg("verify")
            .arg(&file)
            .output();
        match verify {
            Ok(said) => assert!(said.status.success() && said.stderr.is_empty(), "{said:?}"),
            Err(error) => println!("systemd has not verified the unit: {error}"),
        }
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let error = overrides(&["--config", "/nowhere/config.yaml"])
            .document()
            .unwrap_err();

        assert!(
            error.to_string().contains("/nowhere/config.yaml"),
            "{error}"
        );
    }
}

//! What was typed. One definition gives parsing, help and completions.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

use crate::config::document::DEFAULT_SOCKET;
use crate::object::ObjectName;

/// Shows what Fairlead does on this node, and why.
#[derive(Debug, Parser)]
#[command(
    name = "dpctl",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(after_help = "Examples:
  dpctl status                         is everything as it should be?
  dpctl services                       which services, which backends, how much traffic
  dpctl backends drain 10.0.0.1 --wait takes a machine out of service, and says when it is idle
  dpctl trace --in eth0 --src 192.0.2.7:40000 --dst 203.0.113.10:80
                                       what becomes of a packet, and why
  dpctl bgp peers                      who is up, and what was exchanged
  dpctl bgp neighbor 10.0.0.1          everything about a peer
  dpctl bgp received 10.0.0.1          what it told us, and why a path is not used
  dpctl bgp why 10.1.0.0/16            which path of a prefix is the best, and why
  dpctl nat list                       who is behind which egress port
  dpctl drops                          what was dropped, and for which reason
  dpctl maps dump BACKENDS -o json     a table of the datapath, decoded

Exit codes: 0 yes or done, 1 asked and the answer is no, 2 error.")]
pub struct Dpctl {
    /// Absent: the help is shown.
    #[command(subcommand)]
    pub noun: Option<Noun>,
    #[command(flatten)]
    pub global: Global,
}

/// Flags of every question.
#[derive(Args, Debug)]
pub struct Global {
    /// The agent's socket
    #[arg(long, global = true, env = "FAIRLEAD_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Where the agent pins its tables; asked from the agent when not given
    #[arg(long, global = true, env = "FAIRLEAD_PIN_PATH", value_name = "DIR")]
    pub pin_path: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
    /// Prints a table without its header
    #[arg(long, global = true)]
    pub no_headers: bool,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For eyes
    Table,
    /// For eyes, with every column
    Wide,
    /// For programs: stable keys
    Json,
    /// The same keys as YAML
    Yaml,
    /// For scripts that cut lines: tables with a tab between columns
    Tsv,
}

#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Whether this node does what it should; exit code 1 when it does not
    Status,
    /// Services, their backends and traffic
    #[command(visible_alias = "service", visible_alias = "svc")]
    #[command(args_conflicts_with_subcommands = true)]
    Services {
        #[command(subcommand)]
        verb: Option<Services>,
        /// Only the service of this name (namespace/name) or address
        name: Option<String>,
    },
    /// Backends: how each stands, and taking them out of service
    #[command(visible_alias = "backend", args_conflicts_with_subcommands = true)]
    Backends {
        #[command(subcommand)]
        verb: Option<Backends>,
        #[command(flatten)]
        of: OfService,
    },
    /// Flows that the balancer remembers: those that this node translates, and those that began while a ring changed
    #[command(visible_alias = "flow", args_conflicts_with_subcommands = true)]
    Flows {
        #[command(subcommand)]
        verb: Option<Flows>,
        #[command(flatten)]
        filter: FlowFilter,
    },
    /// Runs the loaded program on a packet, without sending it, and says what became of it and why; exit code 1
    /// when it is dropped
    Trace(TraceArgs),
    /// The BGP speaker
    #[command(subcommand)]
    Bgp(Bgp),
    /// Routes learnt by BGP, and what became of them
    Routes,
    /// Translations of egress traffic
    #[command(subcommand)]
    Nat(Nat),
    /// Packets by reason: what was dropped, passed and forwarded
    Drops {
        /// Reasons of every verdict, not of drops only
        #[arg(long)]
        all: bool,
    },
    /// The datapath's tables, read from their pins; works without the agent
    #[command(subcommand)]
    Maps(Maps),
    /// Another system's objects, in those that Fairlead reads; asks nobody
    #[command(subcommand)]
    Import(Import),
    /// Prints completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum Import {
    /// IPAddressPool, BGPPeer, BGPAdvertisement, BFDProfile, Community; what has no counterpart is said in comments
    Metallb {
        /// Where they stand; `-` for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum Services {
    /// Every service, or those of a name or an address
    List {
        /// Only the service of this name (namespace/name) or address
        name: Option<String>,
    },
    /// Everything about a service; exit code 1 when there is none
    Get {
        /// Its name (namespace/name) or address
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Backends {
    /// Every backend with its state, its share of the ring and its traffic
    List(OfService),
    /// Sends new flows elsewhere; flows that a backend has stay for `loadBalancer.drainWindow`. Survives
    /// restarts, until `undrain`; exit code 1 when no service has such a backend
    Drain {
        #[command(flatten)]
        which: Which,
        /// Waits until no packet has been sent to it for a while; exit code 1 when that takes too long
        #[arg(long)]
        wait: bool,
        /// How long no packet must have been sent
        #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10s", requires = "wait")]
        idle: Duration,
        /// How long to wait at most
        #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5m", requires = "wait")]
        timeout: Duration,
    },
    /// Lets backends take new flows again; exit code 1 when they were not drained
    Undrain {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, Subcommand)]
pub enum Flows {
    /// Remembered flows
    List(FlowFilter),
}

/// Which flows.
#[derive(Args, Clone, Debug)]
pub struct FlowFilter {
    #[command(flatten)]
    pub of: OfService,
    /// Only of this client
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// Only of this backend
    #[arg(long, value_name = "ADDRESS")]
    pub backend: Option<IpAddr>,
    /// How many at most
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub limit: usize,
}

/// A packet.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// The device that it comes in by
    #[arg(long = "in", value_name = "DEVICE")]
    pub device: String,
    /// From whom: 192.0.2.7:40000, [2001:db8::7]:40000
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub src: SocketAddr,
    /// To whom
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub dst: SocketAddr,
    /// tcp or udp
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp"])]
    pub proto: String,
    /// TCP flags: syn begins a flow, ack belongs to one
    #[arg(long, default_value = "syn", value_name = "FLAG,...")]
    pub flags: String,
    /// TTL or hop limit
    #[arg(long, default_value_t = 64)]
    pub ttl: u8,
    /// Bytes of the IP packet; 0: its headers alone
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub size: u16,
    /// The node that has wrapped it in IP for a backend of this one
    #[arg(long, value_name = "ADDRESS", requires = "wrapped_for")]
    pub wrapped_by: Option<IpAddr>,
    /// That backend
    #[arg(long, value_name = "ADDRESS", requires = "wrapped_by")]
    pub wrapped_for: Option<IpAddr>,
}

/// Of which service.
#[derive(Args, Clone, Debug)]
pub struct OfService {
    /// Only of this service
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
    pub service: Option<String>,
}

/// Which backends.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// Their address, with a port when one port only is meant: 10.0.0.1, 10.0.0.1:80, [fd00::1]:80
    #[arg(value_name = "ADDRESS[:PORT]")]
    pub backend: BackendName,
    #[command(flatten)]
    pub of: OfService,
}

/// An address, or an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendName {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl FromStr for BackendName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self {
                address,
                port: None,
            });
        }
        match text.parse::<SocketAddr>() {
            Ok(at) if at.port() != 0 => Ok(Self {
                address: at.ip(),
                port: Some(at.port()),
            }),
            _ => Err(
                "it is an address or an address and a port, such as 10.0.0.1, 10.0.0.1:80 or [fd00::1]:80"
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

fn service_name(text: &str) -> Result<String, String> {
    match ObjectName::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("it is NAMESPACE/NAME, as `dpctl services` prints it".to_owned()),
    }
}

fn peer_name(text: &str) -> Result<String, String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
    if !text.is_empty() && text.chars().all(is_part) {
        Ok(text.to_owned())
    } else {
        Err("it is an address or a host name, as `dpctl bgp peers` prints it".to_owned())
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "it is a time such as 10s or 5m".to_owned())
}

#[derive(Debug, Subcommand)]
pub enum Bgp {
    /// Sessions and what was exchanged
    Peers,
    /// Everything about one peer: session, capabilities, timers, messages, prefixes, past
    Neighbor {
        /// Its address, or the host name that it sent
        #[arg(value_name = "PEER", value_parser = peer_name)]
        peer: String,
    },
    /// What a peer was told, with attributes; of all peers without one
    Advertised {
        /// Its address, or the host name that it sent
        #[arg(value_name = "PEER", value_parser = peer_name)]
        peer: Option<String>,
    },
    /// What a peer told us, before any policy, and why a path is not used
    Received {
        /// Its address, or the host name that it sent
        #[arg(value_name = "PEER", value_parser = peer_name)]
        peer: String,
    },
    /// The rules by which routes come in and go out, and how many prefixes each decided
    Policy {
        /// Its address, or the host name that it sent
        #[arg(value_name = "PEER", value_parser = peer_name)]
        peer: Option<String>,
    },
    /// Update groups: which peers are told the same, by one computation
    Groups,
    /// What happened last: sessions, refusals, faults, routes
    Events {
        /// Goes on with what happens, until interrupted
        #[arg(short, long)]
        follow: bool,
    },
    /// The paths that a recording (`fairlead run --record`) comes to; asks nobody
    Replay {
        /// The recording
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// BFD sessions: whether packets get to the peers that are watched, and how fast a failure is seen
    Bfd,
    /// Paths
    Routes {
        /// Which
        #[arg(value_enum, default_value_t = Set::Available)]
        set: Set,
    },
    /// All paths of a prefix, with what decides about each; exit code 1 when there is none
    Why {
        /// The prefix, such as 10.1.0.0/16; an address means its host route
        prefix: IpNetwork,
    },
}

/// Which paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Set {
    /// All that were received and originated, with the reason for each
    Available,
    /// What is sent to each peer
    Advertised,
}

#[derive(Debug, Subcommand)]
pub enum Nat {
    /// The flows that are translated now
    List,
}

#[derive(Debug, Subcommand)]
pub enum Maps {
    /// The tables, their sizes and fill
    List,
    /// Every row of a table
    Dump {
        /// The table's name, as `maps list` prints it
        table: String,
        /// Prints bytes in hexadecimal, undecoded
        #[arg(long)]
        raw: bool,
    },
    /// One row of a table; exit code 1 when there is none
    Get {
        /// The table's name
        table: String,
        /// The key: a number, `field=value` words, or JSON, with the names that `maps dump` prints
        #[arg(required = true)]
        key: Vec<String>,
        /// Prints bytes in hexadecimal, undecoded
        #[arg(long)]
        raw: bool,
    },
}

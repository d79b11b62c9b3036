//! What was typed. One definition gives parsing, help and completions.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;

use crate::config::document::DEFAULT_SOCKET;

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
  dpctl bgp peers                      who is up, and what was exchanged
  dpctl bgp routes advertised          what each peer was told
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
}

#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Whether this node does what it should; exit code 1 when it does not
    Status,
    /// Services, their backends and traffic
    #[command(visible_alias = "service", visible_alias = "svc")]
    Services {
        /// Only the service of this name (namespace/name) or address
        name: Option<String>,
    },
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
    /// Prints completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum Bgp {
    /// Sessions and what was exchanged
    Peers,
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

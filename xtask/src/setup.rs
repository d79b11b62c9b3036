//! `cargo xtask setup`: finds what this machine lacks and installs it, saying what and why.
//!
//! Looking starts no program, so the other verbs look each time and set up only what they need. Installing goes
//! through apt, rustup and cargo, as root where that is needed; what cannot be done here is one line with the
//! command that a person would type. Daemons that come with a package are neither started nor left enabled;
//! those that were there before are not touched.
//!
//! Not for choosing how the datapath is built: `ebpf` does, and is asked what it lacks.

mod apt;

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{ebpf, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Only say what is missing, and fail when something is
    #[arg(long)]
    check: bool,
}

/// What a need is for; a verb asks for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    Build,
    Cluster,
    E2e,
    Lint,
    Run,
    Test,
    Bench,
}

/// The linker that this tree is tested with, and the LLVM that it shares with the prebuilt compiler.
const LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

struct Need {
    name: &'static str,
    why: &'static str,
    uses: &'static [For],
    there_when: Sign,
    remedy: Remedy,
}

/// How one sees that a need is met.
enum Sign {
    Programs(&'static [&'static str]),
    Compiler,
    Linker,
    File(&'static str),
    /// A BPF file system is mounted where programs and tables are pinned.
    BpfFileSystem,
}

/// How a need is met.
#[derive(Clone, Copy)]
enum Remedy {
    Apt(apt::Package),
    /// A component of the toolchain that runs us.
    Component(&'static str),
    Compiler,
    Linker,
    Mount,
}

const fn package(name: &'static str, service: Option<&'static str>) -> Remedy {
    Remedy::Apt(apt::Package { name, service })
}

/// Everything, in the order in which it is installed.
const NEEDS: [Need; 26] = [
    Need {
        name: "compiler",
        why: "compiles the datapath for BPF",
        uses: &[For::Build],
        there_when: Sign::Compiler,
        remedy: Remedy::Compiler,
    },
    Need {
        name: "bpf-linker",
        why: "links the datapath into one object",
        uses: &[For::Build],
        there_when: Sign::Linker,
        remedy: Remedy::Linker,
    },
    Need {
        name: "rustfmt",
        why: "checks the format",
        uses: &[For::Lint],
        there_when: Sign::Programs(&["rustfmt", "cargo-fmt"]),
        remedy: Remedy::Component("rustfmt"),
    },
    Need {
        name: "clippy",
        why: "reads every line a second time",
        uses: &[For::Lint],
        there_when: Sign::Programs(&["clippy-driver", "cargo-clippy"]),
        remedy: Remedy::Component("clippy"),
    },
    Need {
        name: "ip",
        why: "makes the network namespaces",
        uses: &[For::Cluster, For::Run, For::Test, For::Bench],
        there_when: Sign::Programs(&["ip"]),
        remedy: package("iproute2", None),
    },
    Need {
        name: "frr",
        why: "is the router that the agents talk to",
        uses: &[For::Cluster, For::Run, For::Test, For::Bench],
        there_when: Sign::Programs(&["zebra", "vtysh"]),
        remedy: package("frr", Some("frr")),
    },
    Need {
        name: "bpffs",
        why: "keeps programs and tables while an agent restarts",
        uses: &[For::Run, For::Test],
        there_when: Sign::BpfFileSystem,
        remedy: Remedy::Mount,
    },
    Need {
        name: "curl",
        why: "sends the requests of the demonstration",
        uses: &[For::Run, For::Test, For::E2e],
        there_when: Sign::Programs(&["curl"]),
        remedy: package("curl", None),
    },
    Need {
        name: "ping",
        why: "checks paths between namespaces",
        uses: &[For::Run, For::Test],
        there_when: Sign::Programs(&["ping"]),
        remedy: package("iputils-ping", None),
    },
    Need {
        name: "traceroute",
        why: "shows the hops from pod to pod",
        uses: &[For::Run, For::Test],
        there_when: Sign::Programs(&["traceroute"]),
        remedy: package("traceroute", None),
    },
    Need {
        name: "ethtool",
        why: "switches checksum offload off where XDP must see checksums",
        uses: &[For::Cluster, For::Run, For::Test, For::Bench],
        there_when: Sign::Programs(&["ethtool"]),
        remedy: package("ethtool", None),
    },
    Need {
        name: "tcpdump",
        why: "captures what is on the links",
        uses: &[For::Run, For::Test],
        there_when: Sign::Programs(&["tcpdump"]),
        remedy: package("tcpdump", None),
    },
    Need {
        name: "bird",
        why: "is a second opinion on BGP",
        uses: &[For::Test, For::Bench],
        there_when: Sign::Programs(&["bird", "birdc"]),
        remedy: package("bird2", Some("bird")),
    },
    Need {
        name: "gobgp",
        why: "is a third opinion on BGP",
        uses: &[For::Test, For::Bench],
        there_when: Sign::Programs(&["gobgpd", "gobgp"]),
        remedy: package("gobgpd", Some("gobgpd")),
    },
    Need {
        name: "openbgpd",
        why: "is a fourth opinion on BGP",
        uses: &[For::Test, For::Bench],
        there_when: Sign::Programs(&["bgpctl", "bgpd"]),
        remedy: package("openbgpd", Some("openbgpd")),
    },
    Need {
        name: "exabgp",
        why: "is a fifth opinion on BGP",
        uses: &[For::Test],
        there_when: Sign::Programs(&["exabgp"]),
        remedy: package("exabgp", Some("exabgp")),
    },
    Need {
        name: "nftables",
        why: "cuts paths in tests; balances too, and is compared with",
        uses: &[For::Test, For::Bench],
        there_when: Sign::Programs(&["nft"]),
        remedy: package("nftables", None),
    },
    Need {
        name: "iptables",
        why: "balances too, as kube-proxy has it do, and is compared with",
        uses: &[For::Bench],
        there_when: Sign::Programs(&["iptables-restore"]),
        remedy: package("iptables", None),
    },
    Need {
        name: "go",
        why: "builds Kubernetes",
        uses: &[For::Cluster],
        there_when: Sign::Programs(&["go"]),
        remedy: package("golang-go", None),
    },
    Need {
        name: "etcd",
        why: "keeps what the API server knows",
        uses: &[For::Cluster],
        there_when: Sign::Programs(&["etcd"]),
        remedy: package("etcd-server", Some("etcd")),
    },
    Need {
        name: "containerd",
        why: "runs the pods",
        uses: &[For::Cluster],
        there_when: Sign::Programs(&["containerd", "ctr", "runc"]),
        remedy: package("containerd", Some("containerd")),
    },
    Need {
        name: "cni",
        why: "makes the links of pods, and gives their addresses",
        uses: &[For::Cluster, For::Test],
        there_when: Sign::File("/usr/lib/cni/ptp"),
        remedy: package("containernetworking-plugins", None),
    },
    Need {
        name: "busybox",
        why: "is what the test images hold",
        uses: &[For::Cluster],
        there_when: Sign::Programs(&["busybox"]),
        remedy: package("busybox-static", None),
    },
    Need {
        name: "wget",
        why: "is what Kubernetes' own tests ask with",
        uses: &[For::E2e],
        there_when: Sign::Programs(&["wget"]),
        remedy: package("wget", None),
    },
    Need {
        name: "nc",
        why: "is what Kubernetes' own tests connect with",
        uses: &[For::E2e],
        there_when: Sign::Programs(&["nc.openbsd"]),
        remedy: package("netcat-openbsd", None),
    },
    Need {
        name: "openssl",
        why: "makes the API server's certificates",
        uses: &[For::Cluster],
        there_when: Sign::Programs(&["openssl"]),
        remedy: package("openssl", None),
    },
];

/// Sets up everything, or says what is missing.
pub fn run(arguments: &Arguments) -> Result<()> {
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| !need.there_when.is_seen())
        .collect();
    if missing.is_empty() {
        println!("setup: nothing is missing");
        return Ok(());
    }
    if arguments.check {
        for need in &missing {
            println!(
                "setup: {} is missing; it {}: {}",
                need.name,
                need.why,
                need.remedy.by_hand()
            );
        }
        bail!(
            "{} missing; `cargo xtask setup` installs what it can",
            missing.len()
        );
    }
    install(&missing)
}

/// Sets up what is missing for some uses; silent and instant when nothing is.
///
/// # Errors
/// When something is still missing afterwards; what, and the command for it, has been printed.
pub fn ensure(uses: &[For]) -> Result<()> {
    let wanted = NEEDS
        .iter()
        .filter(|need| need.uses.iter().any(|purpose| uses.contains(purpose)));
    let missing: Vec<&Need> = wanted.filter(|need| !need.there_when.is_seen()).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        install(&missing)
    }
}

fn install(missing: &[&Need]) -> Result<()> {
    for need in missing {
        println!("setup: {} is missing; it {}", need.name, need.why);
    }
    // One transaction for all packages: apt is slow to start.
    let packages: Vec<apt::Package> = missing
        .iter()
        .flat_map(|need| need.remedy.packages())
        .collect();
    if !packages.is_empty()
        && workspace::is_root()
        && apt::is_there()
        && let Err(error) = apt::install(&packages)
    {
        println!("setup: {error:#}");
    }
    let mut left = 0;
    for need in missing {
        if !need.there_when.is_seen() {
            need.remedy.apply();
        }
        if !need.there_when.is_seen() {
            println!(
                "setup: {} cannot be installed from here; type: {}",
                need.name,
                need.remedy.by_hand()
            );
            left += 1;
        }
    }
    if left > 0 {
        bail!("setup: {left} of {} still missing", missing.len());
    }
    Ok(())
}

impl Sign {
    fn is_seen(&self) -> bool {
        match self {
            Self::Programs(names) => names
                .iter()
                .all(|name| workspace::find_program(name).is_some()),
            Self::File(path) => Path::new(path).exists(),
            Self::Compiler => {
                let tools = ebpf::find_tools();
                tools.prebuilt.is_some() || tools.nightly.is_some()
            }
            Self::Linker => ebpf::find_tools().linker.is_some(),
            Self::BpfFileSystem => {
                has_bpf_file_system(&fs::read_to_string("/proc/mounts").unwrap_or_default())
            }
        }
    }
}

impl Remedy {
    /// Names the packages that this remedy takes from apt where there is apt.
    fn packages(self) -> Vec<apt::Package> {
        let plain = |name| apt::Package {
            name,
            service: None,
        };
        match self {
            Self::Apt(package) => vec![package],
            Self::Compiler => ["rustc-web", "libstd-rust-web-dev-bpf"].map(plain).to_vec(),
            // The linker is built against LLVM.
            Self::Linker => vec![plain("llvm-22-dev")],
            Self::Component(_) | Self::Mount => Vec::new(),
        }
    }

    /// Does what is left when packages are installed.
    fn apply(self) {
        match self {
            Self::Apt(_) => {}
            Self::Component(name) => {
                attempt(Command::new("rustup").args(["component", "add", name]));
            }
            // Without apt: the road that rustup paves.
            Self::Compiler => attempt(Command::new("rustup").args([
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ])),
            Self::Linker => {
                let mut cargo = workspace::cargo();
                cargo.args([
                    "install",
                    "bpf-linker",
                    "--locked",
                    "--version",
                    LINKER_VERSION,
                ]);
                if Path::new(LLVM_PREFIX).exists() {
                    cargo
                        .args(["--no-default-features", "--features", "llvm-22"])
                        .env("LLVM_PREFIX", LLVM_PREFIX);
                }
                attempt(&mut cargo);
            }
            Self::Mount if workspace::is_root() => {
                attempt(Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]));
            }
            Self::Mount => {}
        }
    }

    /// What a person would type.
    fn by_hand(self) -> String {
        let as_root = if workspace::is_root() { "" } else { "sudo " };
        match self {
            Self::Apt(package) => format!("{as_root}apt-get install {}", package.name),
            Self::Component(name) => format!("rustup component add {name}"),
            Self::Compiler => format!(
                "{as_root}apt-get install rustc-web libstd-rust-web-dev-bpf  # or, without Debian: rustup toolchain \
                 install nightly --component rust-src"
            ),
            Self::Linker => format!(
                "{as_root}apt-get install llvm-22-dev && LLVM_PREFIX={LLVM_PREFIX} cargo install bpf-linker --locked \
                 --version {LINKER_VERSION} --no-default-features --features llvm-22"
            ),
            Self::Mount => format!("{as_root}mount -t bpf bpf /sys/fs/bpf"),
        }
    }
}

/// Runs a command and says so. Whether it helped is seen by what is still missing afterwards.
fn attempt(command: &mut Command) {
    let words: Vec<_> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .collect();
    println!("setup: {}", words.join(" ".as_ref()).to_string_lossy());
    if let Err(error) = workspace::run_quietly(command, "setting up") {
        println!("setup: {error:#}");
    }
}

fn has_bpf_file_system(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some("/sys/fs/bpf") && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bpf_file_system_counts_only_where_pins_go() {
        assert!(has_bpf_file_system(
            "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"
        ));
        assert!(!has_bpf_file_system("bpf /run/bpf bpf rw 0 0\n"));
        assert!(!has_bpf_file_system("tmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
    }

    #[test]
    fn every_need_says_why_and_what_to_type() {
        for need in &NEEDS {
            assert!(!need.uses.is_empty(), "{}", need.name);
            assert!(
                need.why
                    .split(' ')
                    .next()
                    .is_some_and(|verb| verb.ends_with('s')),
                "it {}",
                need.why
            );
            assert!(need.remedy.by_hand().contains(' '), "{}", need.name);
        }
    }
}

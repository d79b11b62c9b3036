//! Who is measured, each with the same policy: in from the injector up to /24 (IPv6: /48), out all.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fairlead_bgp::config::{Announcements, ImportPolicy, PeerConfig, PrefixRule, SpeakerConfig};
use fairlead_bgp::wire::Family;
use fairlead_control::bgp_io;
use fairlead_tests::netns::Netns;
use fairlead_tests::peer::OpenBgpd;
use fairlead_tests::process::Process;
use tokio_util::sync::CancellationToken;

use super::load::address;
use super::{INJECTOR_AS, MONITOR_AS, SPEAKER_AS};

/// A speaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    Fairlead,
    Bird,
    OpenBgpd,
    Frr,
    GoBgp,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fairlead => "fairlead",
            Self::Bird => "BIRD",
            Self::OpenBgpd => "OpenBGPD",
            Self::Frr => "FRR",
            Self::GoBgp => "GoBGP",
        })
    }
}

/// A running speaker.
pub struct Running {
    process: Process,
}

impl Running {
    /// Whether it still runs.
    pub fn check(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => bail!("it ended with {status}; {}", self.last_words()),
            None => Ok(()),
        }
    }

    /// The end of what it printed.
    pub fn last_words(&self) -> String {
        let printed = self.process.printed();
        let lines: Vec<&str> = printed.lines().rev().take(5).collect();
        format!("it printed last: {}", lines.join(" | "))
    }

    /// What its processes have resident.
    pub fn megabytes(&self) -> Result<f64> {
        let kilobytes: u64 = family_of(self.process.id())
            .into_iter()
            .map(resident)
            .sum::<Result<u64>>()?;
        Ok(kilobytes as f64 / 1000.0 * 1.024)
    }
}

impl Contender {
    /// Every speaker.
    pub const ALL: [Self; 5] = [
        Self::Fairlead,
        Self::Bird,
        Self::OpenBgpd,
        Self::Frr,
        Self::GoBgp,
    ];

    /// Starts it in a namespace, with its files in a folder.
    pub fn start(self, netns: &Netns, folder: &Path, ipv6: bool, monitors: u8) -> Result<Running> {
        let config = folder.join("config");
        let (text, mut command) = match self {
            Self::Fairlead => {
                let mut command = netns.command(std::env::current_exe()?);
                command.arg("speaker").arg(monitors.to_string());
                if ipv6 {
                    command.arg("ipv6");
                }
                (String::new(), command)
            }
            Self::Bird => {
                let mut command = netns.command("bird");
                command.arg("-f").arg("-c").arg(&config);
                command.arg("-s").arg(folder.join("bird.ctl"));
                command.arg("-P").arg(folder.join("bird.pid"));
                (bird(ipv6, monitors), command)
            }
            Self::OpenBgpd => {
                let mut command = OpenBgpd::command(netns);
                command.arg("-d").arg("-f").arg(&config);
                (openbgpd(folder, ipv6), command)
            }
            Self::Frr => {
                // Without zebra: none of the others has a kernel to feed.
                let mut command = netns.command("/usr/lib/frr/bgpd");
                command.args([
                    "--no_zebra",
                    "--skip_runas",
                    "--vty_port",
                    "0",
                    "--log",
                    "stdout",
                ]);
                command.arg("--config_file").arg(&config);
                command.arg("--pid_file").arg(folder.join("bgpd.pid"));
                command.arg("--vty_socket").arg(folder);
                (frr(ipv6), command)
            }
            Self::GoBgp => {
                let mut command = netns.command("gobgpd");
                command.args([
                    "--api-hosts",
                    "127.0.0.1:50051",
                    "-t",
                    "toml",
                    "-l",
                    "error",
                    "-f",
                ]);
                command.arg(&config);
                (gobgp(ipv6), command)
            }
        };
        std::fs::write(&config, text).with_context(|| config.display().to_string())?;
        // OpenBGPD refuses a configuration that others may read.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&config, private)?;
        let process = Process::start(&mut command, &folder.join("log"))
            .with_context(|| format!("{self} (cargo xtask setup installs it)"))?;
        Ok(Running { process })
    }
}

/// Runs our speaker as the agent does, until it is killed.
pub fn speak() -> Result<()> {
    let monitors = std::env::args().nth(2).context("how many monitors?")?;
    let monitors: u8 = monitors.parse().context("how many monitors?")?;
    let ipv6 = std::env::args_os().nth(3).is_some();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = SpeakerConfig {
            local_as: SPEAKER_AS,
            router_id: Ipv4Addr::new(10, 0, 1, 1),
            hostname: None,
            multipath_limit: 64,
        };
        let (handle, task) = bgp_io::start(config, 1, Some(179), None, CancellationToken::new())?;
        let all: [&str; 2] = ["0.0.0.0/0", "::/0"];
        let import = all
            .iter()
            .zip([(8, 24), (16, 48)])
            .map(|(prefix, (ge, le))| {
                Ok(PrefixRule {
                    prefix: prefix.parse()?,
                    ge: Some(ge),
                    le: Some(le),
                })
            })
            .collect::<Result<_>>()?;
        let family = if ipv6 {
            Family::Ipv6Unicast
        } else {
            Family::Ipv4Unicast
        };
        let peer = |name: &str, at, asn| PeerConfig {
            passive: true,
            families: [family].into(),
            hold_time: Duration::from_mins(4),
            ..PeerConfig::new(name, at, asn)
        };
        let mut injector = peer("injector", address(ipv6, 1, 2), INJECTOR_AS);
        injector.import = ImportPolicy::Prefixes(import);
        let monitors = (0..monitors).map(|number| {
            let at = address(ipv6, 2, 2 + number);
            let mut monitor = peer(&format!("monitor{number}"), at, MONITOR_AS);
            monitor.transit = true;
            monitor
        });
        let peers = std::iter::once(injector).chain(monitors).collect();
        handle.set_peers(peers).await?;
        handle.set_announcements(Announcements::new()).await?;
        task.await.context("the speaker")
    })
}

fn bird(ipv6: bool, monitors: u8) -> String {
    let (family, range) = if ipv6 {
        ("ipv6", "::/0{16,48}")
    } else {
        ("ipv4", "0.0.0.0/0{8,24}")
    };
    let peer = |name: &str, (link, host), asn, policy: &str| {
        let (local, remote) = (address(ipv6, link, 1), address(ipv6, link, host));
        format!(
            "protocol bgp {name} {{\n\
             local {local} as {SPEAKER_AS};\n neighbor {remote} as {asn};\n passive on;\n hold time 240;\n\
             {family} {{ {policy} }};\n}}\n"
        )
    };
    let taken =
        format!("import filter {{ if net ~ [ {range} ] then accept; reject; }}; export none;");
    let told = "import none; export filter { if source = RTS_BGP then accept; reject; };";
    let monitors: String = (0..monitors)
        .map(|number| {
            peer(
                &format!("monitor{number}"),
                (2, 2 + number),
                MONITOR_AS,
                told,
            )
        })
        .collect();
    format!(
        "router id 10.0.1.1;\nprotocol device {{ }}\nprotocol direct {{ {family}; }}\n{}{monitors}",
        peer("injector", (1, 2), INJECTOR_AS, &taken),
    )
}

fn openbgpd(folder: &Path, ipv6: bool) -> String {
    let (injector, monitor) = (address(ipv6, 1, 2), address(ipv6, 2, 2));
    let range = if ipv6 {
        "::/0 prefixlen 16 - 48"
    } else {
        "0.0.0.0/0 prefixlen 8 - 24"
    };
    format!(
        "AS {SPEAKER_AS}\nrouter-id 10.0.1.1\nholdtime 240\nfib-update no\nsocket \"{}\"\n\
         listen on {}\nlisten on {}\n\
         neighbor {injector} {{\n remote-as {INJECTOR_AS}\n passive\n}}\n\
         neighbor {monitor} {{\n remote-as {MONITOR_AS}\n passive\n}}\n\
         allow from {injector} prefix {range}\nallow to {monitor}\n",
        folder.join("bgpd.sock").display(),
        address(ipv6, 1, 1),
        address(ipv6, 2, 1),
    )
}

fn frr(ipv6: bool) -> String {
    let (injector, monitor) = (address(ipv6, 1, 2), address(ipv6, 2, 2));
    let (family, list) = if ipv6 {
        (
            "ipv6",
            "ipv6 prefix-list taken seq 5 permit ::/0 ge 16 le 48",
        )
    } else {
        (
            "ipv4",
            "ip prefix-list taken seq 5 permit 0.0.0.0/0 ge 8 le 24",
        )
    };
    format!(
        "{list}\n\
         router bgp {SPEAKER_AS}\n bgp router-id 10.0.1.1\n no bgp ebgp-requires-policy\n\
         no bgp default ipv4-unicast\n timers bgp 60 240\n\
         neighbor {injector} remote-as {INJECTOR_AS}\n neighbor {injector} passive\n\
         neighbor {monitor} remote-as {MONITOR_AS}\n neighbor {monitor} passive\n\
         address-family {family} unicast\n\
         neighbor {injector} activate\n neighbor {injector} prefix-list taken in\n\
         neighbor {monitor} activate\n exit-address-family\n"
    )
}

fn gobgp(ipv6: bool) -> String {
    let (family, prefix, range) = if ipv6 {
        ("ipv6-unicast", "::/0", "16..48")
    } else {
        ("ipv4-unicast", "0.0.0.0/0", "8..24")
    };
    let neighbor = |address: IpAddr, asn| {
        format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{address}\"\npeer-as = {asn}\n\
             [neighbors.transport.config]\npassive-mode = true\n\
             [neighbors.timers.config]\nhold-time = 240.0\nkeepalive-interval = 60.0\n\
             [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\"\n"
        )
    };
    format!(
        "[global.config]\nas = {SPEAKER_AS}\nrouter-id = \"10.0.1.1\"\n\
         [global.apply-policy.config]\nimport-policy-list = [\"taken\"]\n\
         default-import-policy = \"reject-route\"\ndefault-export-policy = \"accept-route\"\n\
         {}{}\
         [[defined-sets.prefix-sets]]\nprefix-set-name = \"taken\"\n\
         [[defined-sets.prefix-sets.prefix-list]]\nip-prefix = \"{prefix}\"\nmasklength-range = \"{range}\"\n\
         [[policy-definitions]]\nname = \"taken\"\n\
         [[policy-definitions.statements]]\nname = \"taken\"\n\
         [policy-definitions.statements.conditions.match-prefix-set]\nprefix-set = \"taken\"\n\
         [policy-definitions.statements.actions]\nroute-disposition = \"accept-route\"\n",
        neighbor(address(ipv6, 1, 2), INJECTOR_AS),
        neighbor(address(ipv6, 2, 2), MONITOR_AS),
    )
}

/// A process and its descendants.
fn family_of(process: u32) -> Vec<u32> {
    let mut all = vec![process];
    let mut next = 0;
    while let Some(parent) = all.get(next) {
        let children = Command::new("pgrep")
            .args(["-P", &parent.to_string()])
            .output();
        let printed = children.map(|output| output.stdout).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        all.extend(printed.lines().filter_map(|line| line.parse::<u32>().ok()));
        next += 1;
    }
    all
}

/// Kilobytes of 1024 octets.
fn resident(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .with_context(|| format!("{path} has no VmRSS"))?
        .parse()
        .context(path)
}

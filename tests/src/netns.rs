//! Network namespaces as values: made, entered, and gone when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace of `ip netns`, removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    keep: bool,
}

impl Netns {
    /// Makes a namespace of this name; one that a killed run left behind is replaced.
    ///
    /// Loopback is up. Duplicate address detection is off for links made later: it would keep
    /// link-local addresses unusable for a second.
    pub fn create(name: &str) -> Result<Self> {
        let netns = Self {
            name: name.to_owned(),
            keep: false,
        };
        if netns.path().exists() {
            run(Command::new("ip").args(["netns", "del", name]))?;
        }
        run(Command::new("ip").args(["netns", "add", name]))?;
        netns.ip("link set lo up")?;
        for family in ["all", "default"] {
            netns.sysctl(&format!("net.ipv6.conf.{family}.accept_dad"), "0")?;
        }
        Ok(netns)
    }

    /// Makes a namespace whose name no other test has: `PREFIX-PID-N`.
    pub fn unique(prefix: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::create(&format!("{prefix}-{}-{number}", std::process::id()))
    }

    /// A namespace that another process made and keeps.
    pub fn existing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            keep: true,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Leaves it in place when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Runs `ip -n NAME` with these words.
    pub fn ip(&self, words: &str) -> Result<()> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(words.split_whitespace()))
        .map(drop)
    }

    /// Sets a kernel parameter inside.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        let value = value.to_owned();
        self.enter(move || std::fs::write(&path, value).with_context(|| path.display().to_string()))
            .and_then(|result| result)
    }

    /// Forwards packets of both families, as a router does.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        self.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        // Flows, not destinations, spread over equal paths.
        self.sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
        self.sysctl("net.ipv6.fib_multipath_hash_policy", "1")
    }

    /// Drops every packet that comes in or goes out; no link goes down, so nobody is told.
    pub fn cut(&self) -> Result<()> {
        let chain = |hook| {
            format!(
                "add chain inet cut {hook}s {{ type filter hook {hook} priority 0; policy drop; }}"
            )
        };
        let rules = format!(
            "add table inet cut; {}; {}",
            chain("input"),
            chain("output")
        );
        run(self.command("nft").arg(rules)).map(drop)
    }

    /// Ends a [`Self::cut`].
    pub fn heal(&self) -> Result<()> {
        self.run("nft delete table inet cut").map(drop)
    }

    /// A command that runs inside, with the namespace's own /sys.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command inside and returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        run(self.command(program).args(words))
    }

    /// Runs a closure on a thread of its own inside the namespace.
    ///
    /// A thread, because `setns` moves only the calling one and there is no way back.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        let file = File::open(self.path())
            .with_context(|| format!("opening the namespace {}", self.name))?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(file, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.keep {
            // Gone already is as good.
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name])
                .output();
        }
    }
}

/// Joins two namespaces by a veth pair, both ends up.
///
/// Checksums and segments are made in software before the "wire", as a network card would: XDP sees
/// frames with their real checksums. GRO makes each end receive what XDP sends into it.
pub fn veth(a: (&Netns, &str), b: (&Netns, &str)) -> Result<()> {
    let ((a, a_name), (b, b_name)) = (a, b);
    run(Command::new("ip").args([
        "link",
        "add",
        "name",
        a_name,
        "netns",
        a.name(),
        "type",
        "veth",
        "peer",
        "name",
        b_name,
        "netns",
        b.name(),
    ]))?;
    for (netns, link) in [(a, a_name), (b, b_name)] {
        netns.ip(&format!("link set {link} up"))?;
        netns.run(&format!("ethtool -K {link} tx off gro on"))?;
    }
    Ok(())
}

/// Runs a command to its end and returns what it printed, or an error with what it complained of.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    String::from_utf8(output.stdout).context("output that is not UTF-8")
}

/// Seconds within which what is started has to have begun its work: agents whose programs the verifier walks
/// through, on a machine where other tests do the same.
pub const STARTS: u64 = 60;

/// Repeats a question until it is answered with `Some`, for at most `seconds`.
///
/// # Errors
/// Time is over: the error says what was waited for and the last thing that stood in the way.
pub fn wait_for<T>(
    what: &str,
    seconds: u64,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = std::time::Duration::from_secs(seconds);
    let pause = std::time::Duration::from_millis(20);
    let mut waited = std::time::Duration::ZERO;
    let mut obstacle = String::from("not yet");
    while waited < deadline {
        #[expect(
            clippy::disallowed_methods,
            reason = "an edge: it waits for real processes"
        )]
        let start = std::time::Instant::now();
        match question() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => obstacle = format!("{error:#}"),
        }
        std::thread::sleep(pause);
        waited += start.elapsed();
    }
    bail!("waited {seconds} s for {what}: {obstacle}")
}

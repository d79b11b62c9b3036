//! A host of its own for programs' words: what `fairlead` and `dpctl` say there, and how they end.
#![expect(
    clippy::unwrap_used,
    reason = "a story ends at the first thing that is not as it tells"
)]

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::bpffs::BpfFs;
use crate::lab::binary;
use crate::netns::{Netns, STARTS, wait_for};
use crate::process::Process;
use crate::root;

/// Done, or yes.
pub const YES: i32 = 0;
/// Asked, and the answer is no.
pub const NO: i32 = 1;
/// It could not be done.
pub const ERROR: i32 = 2;
/// A configuration that cannot be read, so that a service manager does not start it again.
pub const BAD_CONFIG: i32 = 78;

/// A host of its own: a namespace, a BPF file system, a folder.
pub struct Host {
    /// Its namespace.
    pub netns: Netns,
    /// Its BPF file system.
    pub bpffs: BpfFs,
    /// Its folder.
    pub dir: TempDir,
}

/// What a program said; the host's folders are called DIR and BPF in it.
#[derive(Debug, PartialEq)]
pub struct Said {
    /// The exit code.
    pub code: i32,
    /// What went to stdout.
    pub out: String,
    /// What went to stderr.
    pub err: String,
}

/// A host; absent without the rights to make one.
pub fn host() -> Option<Host> {
    root::is_root().then(|| Host {
        netns: Netns::unique("fl-cli").unwrap(),
        bpffs: BpfFs::mount().unwrap(),
        dir: tempfile::tempdir().unwrap(),
    })
}

impl Host {
    /// Where its agent pins.
    pub fn pins(&self) -> PathBuf {
        self.bpffs.path().join("fairlead")
    }

    /// Its agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Writes a file into its folder and says where.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Words such as `fairlead run`, DIR and BPF in them for the host's folders.
    pub fn command(&self, line: &str) -> Command {
        let line = line
            .replace("DIR", &self.dir.path().display().to_string())
            .replace("BPF", &self.bpffs.path().display().to_string());
        let mut words = line.split_whitespace().map(|word| match word {
            "fairlead" | "dpctl" => binary(word).unwrap(),
            _ => PathBuf::from(word),
        });
        let mut command = self.netns.command(words.next().unwrap());
        command
            .args(words)
            .env("FAIRLEAD_PIN_PATH", self.pins())
            .env("FAIRLEAD_SOCKET", self.socket())
            .env("FAIRLEAD_NODE_NAME", "node1");
        command
    }

    /// Runs words and gives what was said.
    pub fn say(&self, line: &str) -> Said {
        let output = self.command(line).output().unwrap();
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(&self.dir.path().display().to_string(), "DIR")
                .replace(&self.bpffs.path().display().to_string(), "BPF")
        };
        Said {
            code: output.status.code().unwrap(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// The one line of an error.
    #[track_caller]
    pub fn refuses(&self, line: &str, code: i32, error: &str) {
        let said = self.say(line);

        assert_eq!(said.err, format!("{error}\n"), "{line}");
        assert_eq!((said.code, said.out.as_str()), (code, ""), "{line}");
    }

    /// The lines of an answer.
    #[track_caller]
    pub fn answers(&self, line: &str, code: i32, lines: &[&str]) {
        let said = self.say(line);

        let wanted: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(said.out, wanted, "{line}");
        assert_eq!((said.code, said.err.as_str()), (code, ""), "{line}");
    }

    /// Starts an agent with one device that is not there, and waits for its first round.
    pub fn agent(&self) -> Process {
        let log = self.dir.path().join("agent.log");
        let agent = Process::start(&mut self.command("fairlead run --device eth0"), &log).unwrap();
        wait_for("the agent", STARTS, || {
            Ok(std::os::unix::net::UnixStream::connect(self.socket()).ok())
        })
        .unwrap();
        wait_for("the first round", 5, || {
            Ok((self.say("dpctl status").code != ERROR).then_some(()))
        })
        .unwrap();
        agent
    }
}

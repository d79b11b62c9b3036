//! What stands on the machine, so that what a cluster left behind can be named.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::Result;
use fairlead_tests::netns::run;

/// Mounts, links, namespaces, pins, control groups, folders and processes, each as a line.
pub struct Machine(BTreeSet<String>);

impl Machine {
    pub fn look() -> Result<Self> {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, text: &str| {
            lines.extend(text.lines().map(|line| format!("{kind}: {line}")));
        };
        add("mount", &std::fs::read_to_string("/proc/self/mounts")?);
        add("link", &run(Command::new("ip").args(["-o", "link"]))?);
        let find = |folders: &[&str], rest: &[&str]| -> Result<String> {
            let there: Vec<_> = folders
                .iter()
                .filter(|f| std::path::Path::new(f).exists())
                .collect();
            if there.is_empty() {
                return Ok(String::new());
            }
            // A folder may go while it is listed.
            let output = Command::new("find").args(there).args(rest).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        add("namespace", &find(&["/run/netns"], &["-mindepth", "1"])?);
        add("pin", &find(&["/sys/fs/bpf"], &["-mindepth", "1"])?);
        add("group", &find(&["/sys/fs/cgroup"], &["-type", "d"])?);
        add(
            "folder",
            &find(
                &["/run", "/var/lib", "/var/log", "/etc"],
                &["-maxdepth", "1"],
            )?,
        );
        add(
            "process",
            &run(Command::new("ps").args(["-eo", "pid=,args="]))?,
        );
        Ok(Self(lines))
    }

    /// What is here and was not there, as far as it is a cluster's: other tests may run beside.
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        const OURS: [&str; 9] = [
            "fl-test",
            "fairlead-cluster",
            "containerd",
            "kube",
            "etcd",
            "pause",
            "cni",
            "zebra",
            "bgpd",
        ];
        self.0
            .difference(&before.0)
            .filter(|line| OURS.iter().any(|word| line.contains(word)))
            // The test itself and its own question.
            .filter(|line| !line.contains("target/debug/deps/cluster") && !line.contains(" ps -eo"))
            // A build beside it names features that are called so.
            .filter(|line| !line.contains("<defunct>") && !line.contains("/bin/rustc "))
            .cloned()
            .collect()
    }
}

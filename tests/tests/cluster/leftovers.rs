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
        add("process", &processes()?);
        Ok(Self(lines))
    }

    /// What is here and was not there, as far as it is this cluster's: other tests and clusters may be beside it.
    pub fn beyond(&self, before: &Self, cluster: &str) -> Vec<String> {
        const OURS: [&str; 6] = [
            "fl-test",
            "fairlead-cluster",
            "containerd",
            "kube",
            "etcd",
            "cni",
        ];
        self.0
            .difference(&before.0)
            .filter(|line| OURS.iter().any(|word| line.contains(word)))
            .filter(|line| !is_of_another(line, cluster))
            .cloned()
            .collect()
    }
}

/// The processes that are in a cluster's control group or name its folder: all that it starts are, or do.
fn processes() -> Result<String> {
    let mut lines = String::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // One may end while it is looked at.
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let (words, groups) = (read("cmdline"), read("cgroup"));
        let line = format!("{} {words} {groups}", entry.file_name().display());
        // One that has ended and that nobody has asked for its end has no words any more.
        if !words.is_empty() && line.contains("fairlead-cluster") {
            lines += &line.replace(['\0', '\n'], " ");
            lines.push('\n');
        }
    }
    Ok(lines)
}

/// Whether a line names a cluster's control group or folder, and not this one's.
fn is_of_another(line: &str, cluster: &str) -> bool {
    ["fairlead-cluster-", "fairlead-cluster/"]
        .iter()
        .any(|start| line.contains(start) && !line.contains(&format!("{start}{cluster}")))
}

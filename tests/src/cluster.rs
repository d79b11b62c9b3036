//! A Kubernetes cluster made by `cargo xtask cluster`, as a value: up, asked, and gone when dropped.
//!
//! Not for making it: the tests use what people use.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::lab::binary;
use crate::netns::{Netns, run};

/// A cluster that goes with this value.
#[derive(Debug)]
pub struct Cluster {
    name: String,
}

impl Cluster {
    /// Brings it up and says what goes on. Its agents are built as those of all other tests are.
    pub fn up(name: &str, options: &[&str]) -> Result<Self> {
        let cluster = Self {
            name: name.to_owned(),
        };
        let status = cluster
            .xtask(&["up", "--debug"])?
            .args(options)
            .status()
            .context("starting xtask")?;
        ensure!(status.success(), "cluster up: {status}");
        Ok(cluster)
    }

    /// Takes it away.
    pub fn down(self) -> Result<()> {
        run(&mut self.xtask(&["down"])?)?;
        std::mem::forget(self);
        Ok(())
    }

    /// `cargo xtask cluster` on this cluster.
    pub fn xtask(&self, words: &[&str]) -> Result<Command> {
        let mut xtask = Command::new(binary("xtask")?);
        xtask
            .args(["cluster", "--name", &self.name])
            .args(words)
            .env_remove("KUBECONFIG");
        Ok(xtask)
    }

    /// What `kubectl` prints.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        run(self.xtask(&["kubectl", "--"])?.args(words))
    }

    /// Applies these documents.
    pub fn apply(&self, documents: &str) -> Result<()> {
        self.apply_as(&[], documents)
    }

    /// As [`Cluster::apply`], with more words for `kubectl`.
    pub fn apply_as(&self, how: &[&str], documents: &str) -> Result<()> {
        let mut kubectl = self.xtask(&["kubectl", "--", "apply", "-f", "-"])?;
        let mut child = kubectl
            .args(how)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("starting kubectl")?;
        let mut input = child.stdin.take().context("kubectl's input")?;
        std::io::Write::write_all(&mut input, documents.as_bytes())?;
        drop(input);
        let status = child.wait()?;
        ensure!(status.success(), "kubectl apply: {status}");
        Ok(())
    }

    /// Gives every node an image of these programs of the workspace.
    pub fn load(&self, programs: &[&str]) -> Result<()> {
        let files = programs
            .iter()
            .map(|name| binary(name))
            .collect::<Result<Vec<PathBuf>>>()?;
        run(self.xtask(&["load-image"])?.args(files)).map(drop)
    }

    /// One of its hosts: `client`, `router`, `tor0`, `node1`…
    pub fn host(&self, host: &str) -> Netns {
        Netns::existing(&format!("{}-{host}", self.name))
    }

    /// What a router of FRR says as JSON.
    pub fn frr(&self, host: &str, command: &str) -> Result<serde_json::Value> {
        let sockets = self.folder().join(host);
        let text = run(self
            .host(host)
            .command("vtysh")
            .arg("--vty_socket")
            .arg(sockets)
            .args(["-c", &format!("{command} json")]))?;
        serde_json::from_str(&text).with_context(|| format!("{command}: {text}"))
    }

    /// The process of one of its parts, such as `kube-apiserver`.
    pub fn pid(&self, part: &str) -> Result<i32> {
        let file = self.folder().join("pid").join(part);
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let pid = text.split(' ').next().and_then(|pid| pid.parse().ok());
        pid.with_context(|| format!("{}: {text}", file.display()))
    }

    /// Where its files are.
    pub fn folder(&self) -> PathBuf {
        Path::new("/var/lib/fairlead-cluster").join(&self.name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A second call finds what this one leaves.
        if let Ok(mut down) = self.xtask(&["down"]) {
            let _ = down.output();
        }
    }
}

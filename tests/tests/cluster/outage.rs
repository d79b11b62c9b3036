//! The control plane is gone, whole, for a minute: no request of a client is lost by it.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::netns::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::web::Asking;
use super::{SERVICE, agent_on, announced, dpctl, group, to};

/// How long it is away.
const AWAY: Duration = Duration::from_mins(1);
/// Within this time an agent has written down what it has heard.
const WRITTEN: Duration = Duration::from_secs(6);

/// A part of the control plane, and how it was started.
struct Part {
    name: &'static str,
    words: Vec<String>,
}

impl Part {
    /// Ends it without a word.
    fn kill(cluster: &Cluster, name: &'static str) -> Result<Self> {
        let pid = cluster.pid(name)?;
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
        let words = line.split_terminator('\0').map(str::to_owned).collect();
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| name.to_owned())?;
        Ok(Self { name, words })
    }

    /// Starts it as before: it ends with the cluster, by the control group.
    fn start(&self, cluster: &Cluster) -> Result<()> {
        let procs = group(cluster)?.join("api").join("cgroup.procs");
        let log = cluster.folder().join(format!("{}-again.log", self.name));
        let log = File::create(&log).with_context(|| log.display().to_string())?;
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", cluster.host("api").name()))
            .args(["sh", "-euc", "echo $$ >\"$0\"; exec \"$@\""])
            .arg(procs)
            .args(&self.words)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {} again", self.name))?;
        Ok(())
    }
}

/// etcd and the API server are killed, and an agent; it goes on from what it has written down. When they are back, a
/// pod of its node has its network, and is a backend.
pub fn nothing_is_lost_while_the_control_plane_is_away(cluster: &Cluster) -> Result<()> {
    std::thread::sleep(WRITTEN);
    let client = cluster.host("client");
    let asking = SERVICE
        .map(|service| Ok(Asking::start(&client, to(service, 80)?)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let parts = ["etcd", "kube-apiserver"].map(|name| Part::kill(cluster, name));
    let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
    kill(agent_on(cluster, "node2")?, Signal::SIGKILL)?;
    std::thread::sleep(AWAY);
    let status = dpctl(cluster, "node2", &["status", "-o", "json"])?;
    ensure!(
        status["conditions"].to_string().contains("NoApiServer"),
        "{status}"
    );
    announced(cluster, &[2, 1], 5)?;

    for part in &parts {
        part.start(cluster)?;
    }
    wait_for("the API server to be back", 60, || {
        cluster.kubectl(&["get", "--raw", "/readyz"]).map(Some)
    })?;
    wait_for("the agents to hear of the API server again", 60, || {
        let status = dpctl(cluster, "node2", &["status", "-o", "json"])?;
        let conditions = status["conditions"].to_string();
        ensure!(!conditions.contains("ApiServer"), "{conditions}");
        Ok(Some(()))
    })?;
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: { name: after, labels: { app: web } }\nspec:\n  \
         nodeName: node2\n  terminationGracePeriodSeconds: 1\n  containers:\n    \
         - { name: web, image: \"localhost/busybox:1\" }\n",
    )?;
    // A kubelet that could not ask for a minute asks again within another one.
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod/after",
        "--timeout=180s",
    ];
    cluster.kubectl(&ready).or_else(|error| {
        let said = cluster.kubectl(&["describe", "pod", "after"])?;
        Err(error.context(said))
    })?;
    for service in SERVICE {
        let to = to(service, 80)?;
        wait_for("the service to be served by the new pod", 60, || {
            let answer = client.enter(|| super::ask(to))??;
            Ok((answer.pod == "after").then_some(()))
        })?;
    }
    // Whoever has not heard of a node for long thinks again when it can.
    std::thread::sleep(Duration::from_secs(10));
    for asking in asking {
        let account = asking.stop()?;
        ensure!(
            account.trouble.is_empty() && account.asked > 1000,
            "{account:?}"
        );
    }
    let gone = ["delete", "pod", "after", "--wait=true"];
    cluster.kubectl(&gone).map(drop)
}

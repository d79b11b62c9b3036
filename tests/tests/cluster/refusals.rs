//! RBAC forbids one kind: what needs it says so, and the rest works.

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::netns::wait_for;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::{agent_on, announced, dpctl};

/// What is taken from the agents' role.
const KIND: &str = "ciliumbgpnodeconfigoverrides";

/// An agent starts without the right to see a kind, and gets it later.
pub fn a_kind_that_is_forbidden_leaves_the_rest_at_work(cluster: &Cluster) -> Result<()> {
    let text = cluster.kubectl(&["get", "clusterrole", "fairlead", "-o", "json"])?;
    let role: Value = serde_json::from_str(&text)?;
    let mut less = role.clone();
    let rules = less["rules"].as_array_mut().context("a role has rules")?;
    let mut taken = 0;
    for rule in rules {
        if let Some(kinds) = rule["resources"].as_array_mut() {
            let before = kinds.len();
            kinds.retain(|kind| kind != KIND);
            taken += before - kinds.len();
        }
    }
    ensure!(taken == 1, "{role}");
    replace(cluster, &less)?;
    kill(agent_on(cluster, "node3")?, Signal::SIGKILL)?;
    wait_for("the agent to say what it may not see", 60, || {
        let status = dpctl(cluster, "node3", &["status", "-o", "json"])?;
        let said = forbidden(&status).context("no condition Forbidden")?;
        ensure!(said.contains(KIND), "{said}");
        ensure!(status["peers"]["good"] == 1, "{status}");
        ensure!(status["inSync"] == true, "{status}");
        Ok(Some(()))
    })?;
    announced(cluster, &[2, 1], 30)?;

    replace(cluster, &role)?;
    wait_for("the agent to see it", 60, || {
        let status = dpctl(cluster, "node3", &["status", "-o", "json"])?;
        let said = forbidden(&status);
        ensure!(said.is_none(), "{said:?}");
        Ok(Some(()))
    })
}

/// What a condition says of a kind that is forbidden.
fn forbidden(status: &Value) -> Option<String> {
    let all = status["conditions"].as_array()?;
    let one = all.iter().find(|one| one["reason"] == "Forbidden")?;
    Some(one["message"].as_str().unwrap_or_default().to_owned())
}

/// As it is now: the version that was read is not asked for.
fn replace(cluster: &Cluster, role: &Value) -> Result<()> {
    let mut role = role.clone();
    if let Some(metadata) = role["metadata"].as_object_mut() {
        metadata.retain(|key, _| key == "name" || key == "labels" || key == "annotations");
    }
    cluster.apply_as(
        &["--server-side", "--force-conflicts", "--field-manager=helm"],
        &role.to_string(),
    )
}

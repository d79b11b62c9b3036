//! STATUS: whether pods that are added now get all of their network.
//!
//! A pod gets its link, addresses and routes without an agent. Its services, its translation and its place in the
//! tables are the agent's, so one that stays away is told; one that restarts is waited for.

use std::time::Duration;

use super::failure::{Code, Failure};
use super::ipam::Ipam;
use super::network::Network;
use super::request::Request;
use crate::api::client;
use crate::api::types::Readiness;

/// How long an agent may take to come back before the node is called not ready: each pod of such a node is taken off
/// its services.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often is asked.
const STEP: Duration = Duration::from_millis(200);

/// Asks the agent, and the IPAM plugin where it knows the question.
///
/// # Errors
/// 51 when no agent has programmed this node since it started, 50 when one has and none is ready now.
pub async fn status(request: &Request, network: &Network) -> Result<(), Failure> {
    let ipam = Ipam::find(network, request)?;
    // As `Pins::exist`; that room is not needed for it.
    if !network.pin_path().join("maps").is_dir() {
        return Err(Failure::new(
            Code::LimitedConnectivity,
            format!(
                "no agent has programmed this node since it started: there is nothing at {}; pods are routed by the kernel alone until `fairlead run` is ready",
                network.pin_path().display()
            ),
        ));
    }
    let mut waited = Duration::ZERO;
    loop {
        match is_ready(network).await {
            Ok(()) => break,
            Err(why) if waited >= PATIENCE => {
                return Err(Failure::new(
                    Code::NotAvailable,
                    "the agent is not ready: pods that are added get services and translation when it is",
                )
                .with(why));
            }
            Err(_) => {
                tokio::time::sleep(STEP).await;
                waited += STEP;
            }
        }
    }
    if network.has_garbage_collection() {
        ipam.ask_newer("STATUS")?;
    }
    Ok(())
}

async fn is_ready(network: &Network) -> Result<(), String> {
    let socket = network.agent_socket();
    let answer = tokio::time::timeout(STEP, client::ask::<Readiness>(&socket, "/v1/ready")).await;
    match answer {
        Ok(Ok(readiness)) if readiness.waits_for.is_empty() => Ok(()),
        Ok(Ok(readiness)) => Err(readiness.waits_for.join("; ")),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err(format!("{} does not answer", socket.display())),
    }
}

//! Asks the agent over its unix socket: all that `dpctl` knows of a running agent.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::Method;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::Refusal;

/// Asks one question: `path` is the request's path and query, such as `/v1/status`.
///
/// # Errors
/// The agent is not there, refused, or answered something else than JSON of this shape.
pub async fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    request(socket, Method::GET, path).await
}

/// Orders the agent to withdraw what it announces and to end. It answers before it has done so.
///
/// # Errors
/// As [`ask`].
pub async fn stop(socket: &Path) -> Result<()> {
    order(socket, "/v1/stop").await
}

/// Gives an order: `path` is the request's path and query, such as `/v1/backends/drain?address=10.0.0.1`.
///
/// # Errors
/// As [`ask`].
pub async fn order<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    request(socket, Method::POST, path).await
}

/// Whether somebody answers at the socket.
pub async fn is_there(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

async fn request<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let kind = error.kind();
        let hint = if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&kind) {
            "; is the agent running? (`fairlead run`; another socket: --socket or FAIRLEAD_SOCKET)"
        } else if kind == ErrorKind::PermissionDenied {
            "; the socket is for root and the group fairlead"
        } else {
            ""
        };
        anyhow!(
            "cannot reach the agent at {}: {error}{hint}",
            socket.display()
        )
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "fairlead")
        .body(Empty::<Bytes>::new())?;
    let response = sender
        .send_request(request)
        .await
        .with_context(|| format!("asking the agent for {path}"))?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    if !status.is_success() {
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => bail!("{}", refusal.error),
            Err(_) => bail!("the agent answered {status} to {path}"),
        }
    }
    serde_json::from_slice(&body).with_context(|| {
        format!("reading the agent's answer to {path}; are agent and dpctl of one version?")
    })
}

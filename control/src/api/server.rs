//! Answers questions on the unix socket from what the agent has published, and takes the one order
//! there is: to stop.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::types::{Refusal, RouteSet};
use crate::telemetry::cause;
use crate::view::View;

#[derive(Deserialize)]
struct RoutesQuery {
    #[serde(default)]
    set: RouteSet,
}

#[derive(Deserialize)]
struct WhyQuery {
    prefix: IpNetwork,
}

/// `POST /v1/stop`: the agent withdraws what it announces, and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// Takes the socket: replaces one that a dead agent left, refuses one that is answered.
///
/// # Errors
/// Another agent answers there, or the path cannot be used.
pub async fn bind(path: &Path) -> Result<UnixListener> {
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            bail!(
                "{} is answered by another agent; stop that one, or give this one its own `socket:`",
                path.display()
            );
        }
        std::fs::remove_file(path)
            .with_context(|| format!("removing the stale socket {}", path.display()))?;
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("creating {}", parent.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("setting the mode of {}", path.display()))?;
    Ok(listener)
}

/// Serves until cancelled; orders go to the agent.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: UnixListener,
    view: Arc<View>,
    orders: mpsc::Sender<Stop>,
    stop: CancellationToken,
) -> Result<()> {
    type Asked = State<Arc<View>>;
    let router = Router::new()
        .route(
            "/v1/status",
            get(async |State(view): Asked| answer(view.status().await)),
        )
        .route(
            "/v1/services",
            get(async |State(view): Asked| answer(view.services())),
        )
        .route(
            "/v1/bgp/peers",
            get(async |State(view): Asked| answer(view.peers().await)),
        )
        .route(
            "/v1/bgp/bfd",
            get(async |State(view): Asked| answer(view.bfd().await)),
        )
        .route(
            "/v1/bgp/routes",
            get(
                async |State(view): Asked, Query(query): Query<RoutesQuery>| {
                    answer(view.bgp_routes(query.set).await)
                },
            ),
        )
        .route(
            "/v1/bgp/why",
            get(async |State(view): Asked, Query(query): Query<WhyQuery>| {
                answer(view.bgp_why(query.prefix).await)
            }),
        )
        .route(
            "/v1/routes",
            get(async |State(view): Asked| answer(view.routes())),
        )
        .route(
            "/v1/nat",
            get(async |State(view): Asked| answer(view.bindings())),
        )
        .route(
            "/v1/drops",
            get(async |State(view): Asked| answer(view.reasons())),
        )
        .with_state(view)
        .route(
            "/v1/stop",
            post(async move || {
                answer(
                    orders
                        .send(Stop)
                        .await
                        .context("the agent is stopping already"),
                )
            }),
        )
        .fallback(async || {
            let error =
                "no such question; dpctl and the agent may be of different versions".to_owned();
            (StatusCode::NOT_FOUND, Json(Refusal { error }))
        });
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("serving the unix socket")
}

fn answer<T: Serialize>(answer: Result<T>) -> Response {
    match answer {
        Ok(value) => Json(value).into_response(),
        Err(error) => {
            let error = cause::line(&error);
            (StatusCode::INTERNAL_SERVER_ERROR, Json(Refusal { error })).into_response()
        }
    }
}

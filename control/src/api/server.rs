//! Answers questions on the unix socket from what the agent has published, and takes orders: to stop, to drain
//! backends and to put them back.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::types::{DrainOutcome, Readiness, Refusal, RouteSet, TraceQuestion};
use crate::desired::ObjectName;
use crate::desired::drain::Drain;
use crate::telemetry::cause;
use crate::telemetry::health::{Health, Latch};
use crate::view::{FlowQuestion, View};

#[derive(Deserialize)]
struct RoutesQuery {
    #[serde(default)]
    set: RouteSet,
    peer: Option<String>,
}

#[derive(Deserialize)]
struct NeighborQuery {
    peer: String,
}

#[derive(Deserialize)]
struct PolicyQuery {
    peer: Option<String>,
}

#[derive(Deserialize)]
struct WhyQuery {
    prefix: IpNetwork,
}

/// Which backends: `address=10.0.0.1&port=80&service=default/web`.
#[derive(Deserialize)]
struct DrainQuery {
    address: IpAddr,
    port: Option<u16>,
    service: Option<String>,
}

/// What the agent is told to do.
#[derive(Debug)]
pub enum Order {
    /// `POST /v1/stop`: it withdraws what it announces, and ends.
    Stop,
    /// `POST /v1/backends/drain`: these backends get no new flows. Answered when that is so.
    Drain(Drain, oneshot::Sender<Result<DrainOutcome>>),
    /// `POST /v1/backends/undrain`: they get new flows again. Answered when that is so.
    Undrain(Drain, oneshot::Sender<Result<DrainOutcome>>),
}

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
    health: Arc<Health>,
    orders: mpsc::Sender<Order>,
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
            get(async |State(view): Asked| answer(view.services().await)),
        )
        .route(
            "/v1/routes",
            get(async |State(view): Asked| answer(view.routes())),
        )
        .route(
            "/v1/nat",
            get(async |State(view): Asked| walk(view, View::bindings).await),
        )
        .route(
            "/v1/drops",
            get(async |State(view): Asked| answer(view.reasons())),
        )
        .route(
            "/v1/flows",
            get(
                async |State(view): Asked, Query(query): Query<FlowQuestion>| {
                    walk(view, move |view| view.flows(&query)).await
                },
            ),
        )
        .route(
            "/v1/trace",
            get(
                async |State(view): Asked, Query(query): Query<TraceQuestion>| {
                    walk(view, move |view| view.trace(&query)).await
                },
            ),
        )
        .with_state(view.clone())
        .merge(bgp_routes(view))
        .merge(ready_route(health))
        .merge(order_routes(orders))
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

fn bgp_routes(view: Arc<View>) -> Router {
    type Asked = State<Arc<View>>;
    Router::new()
        .route(
            "/v1/bgp/peers",
            get(async |State(view): Asked| answer(view.peers().await)),
        )
        .route(
            "/v1/bgp/neighbor",
            get(
                async |State(view): Asked, Query(query): Query<NeighborQuery>| {
                    answer(view.neighbor(&query.peer).await)
                },
            ),
        )
        .route(
            "/v1/bgp/bfd",
            get(async |State(view): Asked| answer(view.bfd().await)),
        )
        .route(
            "/v1/bgp/routes",
            get(
                async |State(view): Asked, Query(query): Query<RoutesQuery>| {
                    answer(view.bgp_routes(query.set, query.peer.as_deref()).await)
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
            "/v1/bgp/policy",
            get(
                async |State(view): Asked, Query(query): Query<PolicyQuery>| {
                    answer(view.bgp_policy(query.peer.as_deref()).await)
                },
            ),
        )
        .route(
            "/v1/bgp/groups",
            get(async |State(view): Asked| answer(view.bgp_groups().await)),
        )
        .route(
            "/v1/bgp/events",
            get(async |State(view): Asked| answer(view.bgp_events().await)),
        )
        .with_state(view)
}

fn ready_route(health: Arc<Health>) -> Router {
    let readiness = async |State(health): State<Arc<Health>>| {
        let waits_for = health.waiting_for().into_iter().map(Latch::about);
        let waits_for = waits_for.map(str::to_owned).collect();
        answer(Ok(Readiness { waits_for }))
    };
    Router::new()
        .route("/v1/ready", get(readiness))
        .with_state(health)
}

fn order_routes(orders: mpsc::Sender<Order>) -> Router {
    type Ordered = State<mpsc::Sender<Order>>;
    Router::new()
        .route(
            "/v1/stop",
            post(async |State(orders): Ordered| answer(give(&orders, Order::Stop).await)),
        )
        .route(
            "/v1/backends/drain",
            post(
                async |State(orders): Ordered, Query(query): Query<DrainQuery>| {
                    answer(drain(&orders, query, Order::Drain).await)
                },
            ),
        )
        .route(
            "/v1/backends/undrain",
            post(
                async |State(orders): Ordered, Query(query): Query<DrainQuery>| {
                    answer(drain(&orders, query, Order::Undrain).await)
                },
            ),
        )
        .with_state(orders)
}

async fn give(orders: &mpsc::Sender<Order>, order: Order) -> Result<()> {
    let given = orders.send(order).await;
    given.map_err(|_| anyhow!("the agent is stopping already"))
}

async fn drain(
    orders: &mpsc::Sender<Order>,
    query: DrainQuery,
    order: impl FnOnce(Drain, oneshot::Sender<Result<DrainOutcome>>) -> Order,
) -> Result<DrainOutcome> {
    let service = match &query.service {
        Some(text) => Some(ObjectName::parse(text).with_context(|| {
            format!("{text:?} names no service; write NAMESPACE/NAME, as `dpctl services` does")
        })?),
        None => None,
    };
    let drain = Drain {
        address: query.address,
        port: query.port,
        service,
    };
    let (answer, answered) = oneshot::channel();
    give(orders, order(drain, answer)).await?;
    answered.await.context("the agent has stopped meanwhile")?
}

/// Answers what takes a while, and holds nothing else up meanwhile: a table has up to a million rows, a trace loads
/// a program.
async fn walk<T: Serialize + Send + 'static>(
    view: Arc<View>,
    question: impl FnOnce(&View) -> Result<T> + Send + 'static,
) -> Response {
    let walked = tokio::task::spawn_blocking(move || question(&view)).await;
    answer(walked.context("the question").flatten())
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

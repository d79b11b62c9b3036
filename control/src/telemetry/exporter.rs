//! The one TCP port: `/livez`, `/readyz`, `/metrics`.
//!
//! # Why a port that is taken does not stop the agent
//! Packets matter more than their metrics. The port may be the last agent's, on its way out, or another
//! program's; both pass. Until then it is a condition, which `dpctl status` shows, and every round tries
//! again.
//!
//! Not here: what the answers say ([`super::health`], [`super::metrics`]).

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::cause;
use super::health::{Health, Latch, STALLED};
use super::metrics::{self, Meter};
use crate::config::listen::Listen;
use crate::object::Condition;
use crate::view::View;

/// What is told.
#[derive(Clone, Debug)]
pub struct Told {
    /// Figures of the node.
    pub view: Arc<View>,
    /// What the agent counts.
    pub meter: Meter,
    /// Whether it lives and is ready.
    pub health: Arc<Health>,
    /// The clock that the health is kept by.
    pub now: fn() -> Instant,
}

/// Serves what is told, as soon as its port is free.
#[derive(Debug)]
pub struct Exporter {
    listen: Listen,
    told: Told,
    stop: CancellationToken,
    serving: Option<JoinHandle<std::io::Result<()>>>,
}

impl Exporter {
    /// Serves nothing yet.
    pub fn new(listen: Listen, told: Told, stop: CancellationToken) -> Self {
        Self {
            listen,
            told,
            stop,
            serving: None,
        }
    }

    /// Begins to serve unless it does already; says why it cannot.
    pub async fn follow(&mut self) -> Option<Condition> {
        let Listen::At(address) = self.listen else {
            return None;
        };
        let is_serving = |task: &JoinHandle<_>| !task.is_finished();
        if self.serving.as_ref().is_some_and(is_serving) {
            return None;
        }
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "serving /livez, /readyz and /metrics");
                let stop = self.stop.clone().cancelled_owned();
                let serve = axum::serve(listener, router(self.told.clone()));
                self.serving = Some(tokio::spawn(async move {
                    serve.with_graceful_shutdown(stop).await
                }));
                None
            }
            Err(error) => Some(refused(address, &error)),
        }
    }
}

fn refused(address: SocketAddr, error: &std::io::Error) -> Condition {
    Condition {
        object: "telemetry".to_owned(),
        origin: String::new(),
        reason: "ListenRefused".to_owned(),
        message: format!(
            "no probes and metrics at {address}: {error}; free it or change telemetry.listen; it is tried again"
        ),
    }
}

fn router(told: Told) -> Router {
    type Asked = State<Told>;
    Router::new()
        .route(
            "/livez",
            get(async |State(told): Asked| livez(&told.health, (told.now)())),
        )
        .route(
            "/readyz",
            get(async |State(told): Asked| readyz(&told.health)),
        )
        .route(
            "/metrics",
            get(async |State(told): Asked| scrape(&told).await),
        )
        .with_state(told)
        .fallback(async || {
            let paths = "there are /livez, /readyz and /metrics\n";
            (StatusCode::NOT_FOUND, paths)
        })
}

fn livez(health: &Health, now: Instant) -> (StatusCode, String) {
    let age = health.since_beat(now);
    if age <= STALLED {
        (StatusCode::OK, "alive\n".to_owned())
    } else {
        let seconds = age.as_secs();
        let text = format!("the agent's loop has not turned for {seconds} s\n");
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

fn readyz(health: &Health) -> (StatusCode, String) {
    let waiting: Vec<Latch> = health.waiting_for();
    if waiting.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let text = waiting.iter().fold(String::new(), |mut text, latch| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", latch.about());
        text
    });
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn scrape(told: &Told) -> Response {
    let figures = told.view.figures().await;
    let text = figures.and_then(|figures| Ok(metrics::text(figures, &told.meter)?));
    match text {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            let text = format!("{}\n", cause::line(&error));
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a moment to count from")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_loop_that_stalls_is_told_with_its_age() {
        let start = Instant::now();
        let health = Health::new(start);

        assert_eq!(livez(&health, start + STALLED).0, StatusCode::OK);
        let late = start + STALLED + Duration::from_secs(12);
        assert_eq!(
            livez(&health, late),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the agent's loop has not turned for 42 s\n".to_owned()
            )
        );
        health.beat(late);
        assert_eq!(livez(&health, late).0, StatusCode::OK);
    }

    #[test]
    fn readiness_says_what_is_waited_for() {
        let health = Health::new(Instant::now());
        health.open_when(Latch::Tables, true);
        health.open_when(Latch::Speakers, true);

        assert_eq!(
            readyz(&health),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "a configured device is without its program\n".to_owned()
            )
        );
        health.open_when(Latch::Programs, true);
        assert_eq!(readyz(&health), (StatusCode::OK, "ready\n".to_owned()));
    }
}

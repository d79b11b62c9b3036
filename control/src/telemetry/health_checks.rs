//! `spec.healthCheckNodePort`: what load balancers in front of the cluster ask each node of a service that its
//! own backends serve.
//!
//! The answer is kube-proxy's (kubernetes/pkg/proxy/healthcheck/service_health.go): JSON, 200 when this node
//! has a ready backend, 503 when it has none, whatever the path; the count stands in a header too. A port that
//! is taken is a condition, and every round tries it again.
//!
//! Not here: which ports there are and who counts (`desired::merge`).

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::info;

use super::health::Health;
use crate::desired::HealthCheck;
use crate::object::Condition;

/// The ports that are served, and what they answer.
#[derive(Debug)]
pub struct HealthChecks {
    health: Arc<Health>,
    stop: CancellationToken,
    served: BTreeMap<u16, Port>,
}

/// A port that is served, until it is dropped.
#[derive(Debug)]
struct Port {
    answer: watch::Sender<HealthCheck>,
    task: JoinHandle<io::Result<()>>,
    _stop: DropGuard,
}

impl HealthChecks {
    /// Serves nothing yet. Nodes that are not ready answer that they are not healthy.
    pub const fn new(health: Arc<Health>, stop: CancellationToken) -> Self {
        Self {
            health,
            stop,
            served: BTreeMap::new(),
        }
    }

    /// Serves these ports and no others; says which cannot be.
    pub async fn follow(&mut self, wanted: &BTreeMap<u16, HealthCheck>) -> Vec<Condition> {
        self.served
            .retain(|port, served| wanted.contains_key(port) && !served.task.is_finished());
        let mut refused = Vec::new();
        for (&port, check) in wanted {
            if let Some(served) = self.served.get(&port) {
                served.answer.send_if_modified(|known| {
                    let is_new = known != check;
                    known.clone_from(check);
                    is_new
                });
                continue;
            }
            match listen(port).await {
                Ok(listener) => {
                    info!(port, service = %check.object, "serving healthCheckNodePort");
                    let served = self.serve(listener, check.clone());
                    self.served.insert(port, served);
                }
                Err(error) => refused.push(Condition {
                    object: format!("Service {}", check.object),
                    origin: String::new(),
                    reason: "ListenRefused".to_owned(),
                    message: format!(
                        "spec.healthCheckNodePort {port} is not served: {error}; free it or choose another one; it is tried again"
                    ),
                }),
            }
        }
        refused
    }

    fn serve(&self, listener: TcpListener, check: HealthCheck) -> Port {
        let (answer, asked) = watch::channel(check);
        let health = Arc::clone(&self.health);
        let router = Router::new().fallback(async move || {
            let is_healthy = health.waiting_for().is_empty();
            self::answer(&asked.borrow(), is_healthy)
        });
        let stop = self.stop.child_token();
        let stopped = stop.clone().cancelled_owned();
        let serve = axum::serve(listener, router);
        Port {
            answer,
            task: tokio::spawn(async move { serve.with_graceful_shutdown(stopped).await }),
            _stop: stop.drop_guard(),
        }
    }
}

/// On all addresses of both families, or of IPv4 where there is no IPv6.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        listener => listener,
    }
}

fn answer(check: &HealthCheck, is_healthy: bool) -> Response {
    let status = if check.local_endpoints > 0 && is_healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let weight = check.local_endpoints.to_string();
    let body = json!({
        "service": { "namespace": check.object.namespace, "name": check.object.name },
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": is_healthy,
    });
    let headers = [
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", weight),
    ];
    (status, headers, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectName;

    fn check(local_endpoints: u32) -> HealthCheck {
        HealthCheck {
            object: ObjectName {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
            },
            local_endpoints,
        }
    }

    async fn text(response: Response) -> (u16, String, String) {
        let status = response.status().as_u16();
        let weight = response.headers()["x-load-balancing-endpoint-weight"].clone();
        let bytes = axum::body::to_bytes(response.into_body(), 1024).await;
        let body = String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        (status, weight.to_str().unwrap().to_owned(), body)
    }

    #[tokio::test]
    async fn a_node_is_healthy_while_it_has_a_ready_backend_and_its_tables() {
        for (local, is_healthy, expected) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let (status, weight, body) = text(answer(&check(local), is_healthy)).await;

            assert_eq!((status, weight), (expected, local.to_string()));
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&body).unwrap(),
                json!({
                    "service": { "namespace": "shop", "name": "web" },
                    "localEndpoints": local,
                    "serviceProxyHealthy": is_healthy,
                })
            );
        }
    }
}

//! Who leads: one holder of a `coordination.k8s.io/v1 Lease`, as client-go elects.
//!
//! Clocks of nodes are not compared: a lease is over when *we* have seen it unchanged for its whole duration.
//!
//! ```text
//!   renewed ──RENEW_EVERY──> renewed ... not renewed for LEADS_FOR: leads no more
//!                                        not renewed for DURATION:  another may take it
//! ```

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, PostParams};

/// How long a lease that nobody renews keeps others away.
const DURATION: Duration = Duration::from_secs(15);
/// How long one who cannot renew goes on; the rest is for what is still on its way to the server.
const LEADS_FOR: Duration = Duration::from_secs(10);
/// How often it is renewed, or looked at.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(3);

/// One who may lead.
pub(super) struct Candidate {
    api: Api<Lease>,
    name: &'static str,
    identity: String,
    /// The version that was seen last, and when first.
    seen: Option<(String, Instant)>,
    leads_until: Option<Instant>,
    /// Who held it when it was last looked at; empty: nobody.
    holder: String,
    now: fn() -> Instant,
}

impl Candidate {
    /// Nothing is asked yet.
    pub(super) fn new(
        client: Client,
        namespace: &str,
        name: &'static str,
        identity: &str,
        now: fn() -> Instant,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name,
            identity: identity.to_owned(),
            seen: None,
            leads_until: None,
            holder: String::new(),
            now,
        }
    }

    /// Whether it leads at this moment.
    pub(super) fn leads(&self) -> bool {
        self.leads_until.is_some_and(|until| (self.now)() < until)
    }

    /// Who leads, as far as is known.
    pub(super) fn leader(&self) -> Option<&str> {
        Some(&*self.holder)
            .filter(|holder| !holder.is_empty() && (*holder != self.identity || self.leads()))
    }

    /// Renews the lease, or takes it when it is free.
    ///
    /// # Errors
    /// The server does not answer, or forbids it.
    pub(super) async fn campaign(&mut self) -> Result<(), kube::Error> {
        let asked = (self.now)();
        let stands = self.api.get_opt(self.name).await?;
        let next = match &stands {
            None => self.lease(0, None),
            Some(lease) => {
                let spec = lease.spec.clone().unwrap_or_default();
                let holder = spec.holder_identity.unwrap_or_default();
                if holder != self.identity && !holder.is_empty() && !self.is_over(lease, asked) {
                    self.leads_until = None;
                    self.holder = holder;
                    return Ok(());
                }
                let terms = spec.lease_transitions.unwrap_or_default();
                let is_renewed = holder == self.identity;
                let since = spec.acquire_time.filter(|_| is_renewed);
                let mut next = self.lease(terms + i32::from(!is_renewed), since);
                next.metadata = lease.metadata.clone();
                next
            }
        };
        let written = match &stands {
            None => self.api.create(&PostParams::default(), &next).await,
            // On the version that was read: of two who take it at once one is refused.
            Some(_) => {
                let how = PostParams::default();
                self.api.replace(self.name, &how, &next).await
            }
        };
        match written {
            Ok(_) => {
                self.holder.clone_from(&self.identity);
                self.leads_until = Some(asked + LEADS_FOR);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.leads_until = None;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives it back, so that nobody has to wait.
    pub(super) async fn resign(&mut self) {
        if !self.leads() {
            return;
        }
        self.leads_until = None;
        if let Ok(Some(mut lease)) = self.api.get_opt(self.name).await
            && let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.identity)
        {
            spec.holder_identity = Some(String::new());
            // Who cannot give it back lets it run out.
            let how = PostParams::default();
            let _ = self.api.replace(self.name, &how, &lease).await;
        }
    }

    /// Whether it has stood unchanged for as long as it holds.
    fn is_over(&mut self, lease: &Lease, now: Instant) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => {
                let spec = lease.spec.as_ref();
                let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
                let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
                now - *since > seconds.map_or(DURATION, Duration::from_secs)
            }
            _ => {
                self.seen = Some((version, now));
                false
            }
        }
    }

    fn lease(&self, terms: i32, since: Option<MicroTime>) -> Lease {
        let now = MicroTime(jiff::Timestamp::now());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: Some(since.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(terms),
                ..LeaseSpec::default()
            }),
        }
    }
}

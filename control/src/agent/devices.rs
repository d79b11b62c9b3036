//! Keeps our programs on the configured devices, as these come and go.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use crate::api::types;
use crate::config::document::{Device, Role, XdpMode};
use crate::dataplane::attach::{self, Hook, State};
use crate::dataplane::load::Loaded;
use crate::desired::Condition;
use crate::host::links::{Link, XdpRun};
use crate::host::pods;

/// The programs, and where they are.
#[derive(Debug)]
pub struct Devices {
    loaded: Loaded,
    /// By device name: the interface index it had when the program was attached, and how it runs.
    attached: BTreeMap<(String, Hook), (u32, &'static str)>,
}

/// What a look at the devices found.
#[derive(Debug, Default)]
pub struct Found {
    /// Programs on devices, for people.
    pub attachments: Vec<types::Attachment>,
    /// Whether packets that arrive from the fabric meet the datapath.
    pub uplink_attached: bool,
    /// What is waited for, or refused.
    pub conditions: Vec<Condition>,
}

impl Found {
    /// Whether all of these devices have all of their programs.
    pub fn covers(&self, devices: &[Device]) -> bool {
        let has_all = |device: &Device| {
            let mut hooks = self
                .attachments
                .iter()
                .filter(|found| found.device == device.name)
                .peekable();
            hooks.peek().is_some() && hooks.all(|hook| hook.attached)
        };
        devices.iter().all(has_all)
    }
}

impl Devices {
    /// Nothing is attached by this agent yet.
    pub fn new(loaded: Loaded) -> Self {
        Self {
            loaded,
            attached: BTreeMap::new(),
        }
    }

    /// The datapath, for what is attached elsewhere.
    pub const fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Attaches what is missing; `links` are the host's, by name. `answers_leave`: backends here answer by the stack, so
    /// their answers are looked for on the way to pods of others, too: any veth may lead to one.
    pub fn follow(
        &mut self,
        wanted: &[Device],
        mode: XdpMode,
        links: &BTreeMap<String, Link>,
        answers_leave: bool,
    ) -> Found {
        let mut found = Found::default();
        let (pods, others): (Vec<_>, Vec<_>) = links
            .values()
            .filter(|link| wanted.iter().all(|device| device.name != link.name))
            .partition(|link| pods::name_of(link).is_some());
        let others = others
            .into_iter()
            .filter(|link| answers_leave && link.is_veth && link.is_up);
        let wanted: Vec<(String, Hook)> = wanted
            .iter()
            .flat_map(|device| {
                let hooks: &[Hook] = match device.role {
                    Role::Uplink => &[Hook::XdpIngress, Hook::TcEgress],
                    Role::Lan => Hook::OF_POD,
                };
                hooks.iter().map(|hook| (device.name.clone(), *hook))
            })
            .chain(
                pods.into_iter()
                    .flat_map(|link| Hook::OF_POD.iter().map(|hook| (link.name.clone(), *hook))),
            )
            .chain(others.map(|link| (link.name.clone(), Hook::TcToPod)))
            .collect();
        let keep: BTreeSet<_> = wanted.iter().cloned().collect();
        self.let_go(&keep);
        for (device, hook) in wanted {
            self.follow_one(device, hook, mode, links, &mut found);
        }
        found
    }

    /// Detaches programs from devices that are no longer configured.
    fn let_go(&mut self, keep: &BTreeSet<(String, Hook)>) {
        let pinned = attach::attachments(&self.loaded.pins).unwrap_or_default();
        for pinned in pinned {
            let key = (pinned.device, pinned.hook);
            if key.1 == Hook::XdpDecap || keep.contains(&key) {
                continue;
            }
            match attach::detach(&self.loaded.pins, key.1, &key.0) {
                Ok(_) => info!(device = key.0, program = key.1.program(), "detached"),
                Err(error) => warn!(device = key.0, %error, "detaching"),
            }
            self.attached.remove(&key);
        }
    }

    fn follow_one(
        &mut self,
        device: String,
        hook: Hook,
        mode: XdpMode,
        links: &BTreeMap<String, Link>,
        found: &mut Found,
    ) {
        let index = links.get(&device).map(|link| link.index);
        let key = (device, hook);
        let known = self.attached.get(&key).copied();
        let outcome = match (index, known) {
            (None, _) => {
                self.attached.remove(&key);
                Err((
                    "DeviceMissing",
                    "there is no such device; it is waited for".to_owned(),
                ))
            }
            (Some(index), Some((same, how))) if same == index => Ok(how),
            (Some(index), _) => match self.loaded.attach(hook, &key.0, mode) {
                Ok(State::Missing) => Err((
                    "DeviceMissing",
                    "it vanished while it was set up; it is waited for".to_owned(),
                )),
                Ok(state) => {
                    let is_xdp = hook == Hook::XdpIngress;
                    let how = name(state, links.get(&key.0).filter(|_| is_xdp));
                    info!(device = key.0, program = hook.program(), how, "attached");
                    if state == State::Generic && mode == XdpMode::Auto {
                        info!(
                            device = key.0,
                            "its driver runs no XDP: the stack does, more slowly"
                        );
                    }
                    self.attached.insert(key.clone(), (index, how));
                    Ok(how)
                }
                Err(error) => Err(("AttachFailed", error.to_string())),
            },
        };
        let (state, attached) = match outcome {
            Ok(how) => (how.to_owned(), true),
            Err((reason, message)) => {
                let condition = Condition {
                    object: format!("device {}", key.0),
                    origin: String::new(),
                    reason: reason.to_owned(),
                    message: message.clone(),
                };
                // Said once of a device that several programs wait for.
                if !found.conditions.contains(&condition) {
                    found.conditions.push(condition);
                }
                (format!("not attached: {message}"), false)
            }
        };
        found.uplink_attached |= attached && hook == Hook::XdpIngress;
        found.attachments.push(types::Attachment {
            device: key.0,
            program: hook.program().to_owned(),
            state,
            attached,
        });
    }
}

/// How a program runs; of one that was taken over, the link says it.
fn name(state: State, link: Option<&Link>) -> &'static str {
    match state {
        State::Driver => "driver",
        State::Generic => "generic",
        State::Tcx => "tcx",
        State::Clsact => "clsact",
        State::Missing => "missing",
        State::TakenOver => match link.and_then(|link| link.xdp) {
            Some(XdpRun::Driver) => "driver",
            Some(XdpRun::Generic) => "generic",
            Some(XdpRun::Offloaded) => "offloaded",
            Some(XdpRun::Several) => "several",
            None => "tcx",
        },
    }
}

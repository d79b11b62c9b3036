//! What happens to a fleet: random schedules.

use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_control::desired::Backend;
use fairlead_control::plan::maglev::Sizes;
use proptest::prelude::*;

use crate::datapath::Datapath;
use crate::fleet::{Fleet, MOMENT, SERVICES, World, draining, ready};

/// Small, so that a schedule sees all slots, and of several sizes.
pub const SIZES: Sizes = Sizes {
    least: 16,
    most: 64,
    each: 4,
};
/// How many backends there are.
const BACKENDS: u8 = 6;

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A backend of one service, or of all, comes, gets another weight, drains or (`None`) dies.
    Backend(Option<usize>, u8, Option<Backend>),
    /// A service gets the backends of another one.
    Copy(usize, usize),
    /// Seconds pass.
    Wait(u64),
    /// Clients open so many connections to a service.
    Open(usize, u32),
    /// Clients keep each so-manieth connection.
    Close(usize),
    /// A node joins, which sees changes so many seconds late.
    Join(u64),
    /// A node leaves.
    Leave(usize),
    /// The agent of a node starts anew.
    Restart(usize),
    /// A node sees changes so many seconds late from now on.
    Lag(usize, u64),
    /// The routers spread flows in another way.
    Reshard(u64),
}

/// A schedule and the world that it begins in.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub nodes: u32,
    pub world: World,
    pub events: Vec<Event>,
}

impl Schedule {
    /// Lets it happen; everybody talks after each event.
    pub fn run<D: Datapath>(&self, fleet: &mut Fleet<D>) -> Result<(), String> {
        for service in 0..SERVICES {
            fleet.open(service, 24)?;
        }
        for event in &self.events {
            fleet.advance(MOMENT);
            match event {
                Event::Backend(service, number, backend) => fleet.change(|world| {
                    for (place, backends) in world.iter_mut().enumerate() {
                        if service.is_none_or(|service| service == place) {
                            match backend {
                                Some(backend) => backends.insert(*number, *backend),
                                None => backends.remove(number),
                            };
                        }
                    }
                }),
                Event::Copy(from, to) => fleet.change(|world| world[*to] = world[*from].clone()),
                Event::Wait(seconds) => fleet.advance(Duration::from_secs(*seconds)),
                Event::Open(service, count) => fleet.open(*service, *count)?,
                Event::Close(nth) => fleet.close(*nth),
                Event::Join(lag) if fleet.nodes() < 5 => fleet.join(Duration::from_secs(*lag)),
                Event::Join(_) => fleet.leave(0),
                Event::Leave(nth) => fleet.leave(*nth),
                Event::Restart(nth) => fleet.restart(*nth),
                Event::Lag(nth, lag) => fleet.lag(*nth, Duration::from_secs(*lag)),
                Event::Reshard(salt) => fleet.reshard(*salt),
            }
            fleet.advance(MOMENT);
            fleet.talk()?;
        }
        Ok(())
    }
}

fn backend() -> impl Strategy<Value = Backend> {
    let weight = prop_oneof![8 => Just(1_u32), 2 => Just(3), 1 => Just(0)];
    (weight, prop::bool::weighted(0.7)).prop_map(|(weight, is_ready)| {
        if is_ready {
            ready(weight)
        } else {
            draining(weight)
        }
    })
}

fn event() -> impl Strategy<Value = Event> {
    let service = prop_oneof![2 => Just(None), 1 => (0..SERVICES).prop_map(Some)];
    let state = prop::option::weighted(0.8, backend());
    prop_oneof![
        8 => (service, 0..BACKENDS, state).prop_map(|(service, number, state)| Event::Backend(service, number, state)),
        1 => (0..SERVICES, 0..SERVICES).prop_map(|(from, to)| Event::Copy(from, to)),
        5 => prop_oneof![Just(5_u64), Just(20), Just(40), Just(59), Just(60), Just(61), Just(130)].prop_map(Event::Wait),
        6 => (0..SERVICES, 1_u32..24).prop_map(|(service, count)| Event::Open(service, count)),
        1 => (2_usize..5).prop_map(Event::Close),
        1 => prop_oneof![Just(0_u64), Just(3), Just(30)].prop_map(Event::Join),
        1 => any::<usize>().prop_map(Event::Leave),
        1 => any::<usize>().prop_map(Event::Restart),
        1 => (any::<usize>(), prop_oneof![Just(0_u64), Just(2), Just(25), Just(70)]).prop_map(|(nth, lag)| Event::Lag(nth, lag)),
        2 => any::<u64>().prop_map(Event::Reshard),
    ]
}

/// Schedules of so many events.
pub fn schedule(events: std::ops::Range<usize>) -> impl Strategy<Value = Schedule> {
    let backends = || prop::collection::btree_map(0..BACKENDS, backend(), 0..5);
    let world = (backends(), backends(), backends(), any::<bool>()).prop_map(
        |(first, second, third, alike)| -> World {
            // Services with equal backends share a ring.
            if alike {
                [first.clone(), first.clone(), first]
            } else {
                [first, second, third]
            }
        },
    );
    (1_u32..4, world, prop::collection::vec(event(), events)).prop_map(|(nodes, world, events)| {
        Schedule {
            nodes,
            world,
            events,
        }
    })
}

/// A world in which every service has these backends.
pub fn alike(backends: &BTreeMap<u8, Backend>) -> World {
    std::array::from_fn(|_| backends.clone())
}

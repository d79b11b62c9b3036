//! Work on many things, each for itself: every core takes a share.

use std::iter;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// What `work` makes of each thing, in their order. Fewer than `many` things are not worth threads.
///
/// A panic in a share is one of the caller's.
pub fn each<T: Sync, R: Send>(things: &[T], many: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    if things.len() < many.max(1) {
        return things.iter().map(work).collect();
    }
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let work = &work;
    thread::scope(|scope| {
        let shares: Vec<_> = things
            .chunks(things.len().div_ceil(cores))
            .map(|share| scope.spawn(move || share.iter().map(work).collect::<Vec<R>>()))
            .collect();
        let done = shares.into_iter().flat_map(|share| {
            let done = share.join();
            done.unwrap_or_else(|panic| resume_unwind(panic))
        });
        done.collect()
    })
}

/// What `work` makes of each thing, in no order: a core that is done with one takes the next, for things of which
/// some are far more work than others. Put the largest first.
///
/// A panic is one of the caller's.
pub fn whenever_free<T: Send, R: Send>(things: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let workers = cores.min(things.len());
    let things = Mutex::new(things.into_iter());
    let next = || {
        let mut things = things.lock().unwrap_or_else(PoisonError::into_inner);
        things.next()
    };
    let share = || -> Vec<R> { iter::from_fn(next).map(&work).collect() };
    thread::scope(|scope| {
        let shares: Vec<_> = (0..workers).map(|_| scope.spawn(share)).collect();
        let done = shares.into_iter().flat_map(|share| {
            let done = share.join();
            done.unwrap_or_else(|panic| resume_unwind(panic))
        });
        done.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_in_the_order_of_the_things_however_many_work() {
        for count in [0, 1, 2, 3, 63, 64, 65, 1001] {
            let things: Vec<usize> = (0..count).collect();
            let expected: Vec<usize> = things.iter().map(|thing| thing * 2).collect();
            for many in [0, 1, 64, usize::MAX] {
                assert_eq!(each(&things, many, |thing| thing * 2), expected, "{many}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "thing 900")]
    fn a_panic_is_the_callers() {
        let things: Vec<usize> = (0..1000).collect();
        each(&things, 1, |thing| assert_ne!(*thing, 900, "thing {thing}"));
    }

    #[test]
    fn each_thing_is_taken_once_by_whoever_is_free() {
        for count in [0, 1, 2, 3, 1001] {
            let mut done = whenever_free((0..count).collect(), |thing: usize| thing * 2);
            done.sort_unstable();
            assert_eq!(done, (0..count).map(|thing| thing * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic(expected = "thing 900")]
    fn a_panic_of_whoever_was_free_is_the_callers() {
        whenever_free((0..1000).collect(), |thing: usize| {
            assert_ne!(thing, 900, "thing {thing}");
        });
    }
}

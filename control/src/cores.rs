//! Work that more than one core takes a share of, where there is much of it.
//!
//! # Why
//! A thread costs more than a little work takes: it has to be made, and may be given the core of who waits for it.

use std::num::NonZero;
use std::panic::resume_unwind;
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

/// What two pieces of work make: beside each other where they are `much`, else one after another, `here` first.
///
/// A panic in either is one of the caller's.
pub fn both<A: Send, B>(
    much: bool,
    here: impl FnOnce() -> B,
    beside: impl FnOnce() -> A + Send,
) -> (B, A) {
    if !much {
        return (here(), beside());
    }
    thread::scope(|scope| {
        let beside = scope.spawn(beside);
        let here = here();
        let beside = beside.join();
        (here, beside.unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn much_work_is_done_beside_each_other_and_a_little_in_its_order() {
        let (say, hear) = mpsc::channel();
        let done = both(true, || hear.recv(), move || say.send("beside"));
        assert_eq!(done, (Ok("beside"), Ok(())));

        let (say, hear) = mpsc::channel();
        let done = both(false, || say.send("here"), move || hear.recv());
        assert_eq!(done, (Ok(()), Ok("here")));
    }

    #[test]
    #[should_panic(expected = "beside")]
    fn a_panic_beside_is_the_callers() {
        both(true, || (), || panic!("beside"));
    }

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
}

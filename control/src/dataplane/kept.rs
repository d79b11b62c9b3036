//! `NAT_FLOWS` as memory: the flows that this node translates to backends, and the end of those that have outlived
//! their time.
//!
//! A piece at a time is mapped, so that the table is nobody's memory but the kernel's.
//!
//! # Why
//! Most rows are free, and looking at one in memory needs no system call. A row is freed by one compare-and-exchange
//! of its last word, as the datapath claims it: of the two the quicker one has it.

use std::ops::Range;

use fairlead_common::nat::{self, NatFlow};
use fairlead_common::snat::{self, Binding};
use fairlead_common::tables::NatFlows;

use super::mapped::{Access, Mapped};
use super::pins::Pins;
use super::table::{Error, Pinned};

/// Words of a row. The last one is its life: 0 where the row is free.
const WORDS: usize = size_of::<NatFlow>() / 8;
/// Rows that are mapped at a time, 1 MiB.
const PIECE: u32 = 16384;
/// Seconds that a row is left after its time before its place may be found free: the datapath, which takes it over
/// from that time on, reads its clock at another moment.
const GRACE_S: u32 = 2;

/// The pinned table.
#[derive(Debug)]
pub struct Kept {
    table: Pinned<NatFlows>,
}

impl Kept {
    /// Opens the table.
    ///
    /// # Errors
    /// It is not pinned, or is not this version's.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            table: Pinned::open(pins)?,
        })
    }

    fn piece(&self, rows: &Range<u32>, access: Access) -> Result<Piece, Error> {
        let words = self.table.mapped(rows.clone(), access)?;
        Ok(Piece {
            words,
            first: rows.start,
        })
    }

    /// Shows each flow and its row, in the order of the table.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn each(&self, mut show: impl FnMut(u32, NatFlow)) -> Result<(), Error> {
        for first in (0..nat::ROWS).step_by(PIECE as usize) {
            let rows = first..first + PIECE;
            let piece = self.piece(&rows, Access::Read)?;
            for at in rows {
                if let Some(flow) = piece.flow(at) {
                    show(at, flow);
                }
            }
        }
        Ok(())
    }

    /// The flow in a row.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn flow(&self, at: u32) -> Result<Option<NatFlow>, Error> {
        Ok(self.table.get(&at)?.filter(is_used))
    }
}

/// Some rows of the table.
struct Piece {
    words: Mapped<u64>,
    first: u32,
}

impl Piece {
    fn word(&self, at: u32, word: usize) -> u64 {
        let row = (at - self.first) as usize;
        self.words.get(row * WORDS + word).unwrap_or_default()
    }

    fn flow(&self, at: u32) -> Option<NatFlow> {
        let words: [u64; WORDS] = std::array::from_fn(|word| self.word(at, word));
        Some(bytemuck::cast(words)).filter(is_used)
    }

    /// Frees a row whose life is this; false when it is another one by now.
    fn free(&mut self, at: u32, life: u64) -> bool {
        let row = (at - self.first) as usize;
        self.words.exchange(row * WORDS + WORDS - 1, life, 0)
    }
}

fn is_used(flow: &NatFlow) -> bool {
    life(&flow.binding) != 0
}

/// The last word of a row.
fn life(binding: &Binding) -> u64 {
    let [.., life]: [u64; 3] = bytemuck::cast(*binding);
    life
}

/// A walk from the table's end to its beginning, again and again, that frees what has outlived its time.
#[derive(Debug)]
pub struct Sweep {
    kept: Kept,
    /// Rows that this walk has still to see.
    left: u32,
    met: usize,
    alive: Option<usize>,
}

impl Sweep {
    /// Opens the table.
    ///
    /// # Errors
    /// As [`Kept::open`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            kept: Kept::open(pins)?,
            left: nat::ROWS,
            met: 0,
            alive: None,
        })
    }

    /// How many flows the last complete walk found alive; `None` before its end.
    pub fn alive(&self) -> Option<usize> {
        self.alive
    }

    /// Frees rows that have outlived their time at `now_s`, a piece of the table at a time; the next call goes on
    /// where this one stopped. True at the end of a walk.
    ///
    /// A row is freed only where the next one is free, from the end to the beginning: a flow is sought from its hash
    /// on as far as the first free row.
    ///
    /// # Errors
    /// The table cannot be mapped.
    pub fn clear_expired(&mut self, now_s: u32) -> Result<bool, Error> {
        let rows = self.left - PIECE..self.left;
        let mut piece = self.kept.piece(&rows, Access::Write)?;
        let behind = nat::probe(rows.end - 1, 1);
        let mut is_next_free = self.kept.flow(behind)?.is_none();
        for at in rows.rev() {
            let Some(flow) = piece.flow(at) else {
                is_next_free = true;
                continue;
            };
            let proto = flow.proto;
            let is_over = snat::is_expired(&flow.binding, proto, now_s.saturating_sub(GRACE_S));
            is_next_free = is_over && is_next_free && piece.free(at, life(&flow.binding));
            self.met += usize::from(!is_over);
        }
        self.left -= PIECE;
        let is_complete = self.left == 0;
        if is_complete {
            self.left = nat::ROWS;
            self.alive = Some(std::mem::take(&mut self.met));
        }
        Ok(is_complete)
    }
}

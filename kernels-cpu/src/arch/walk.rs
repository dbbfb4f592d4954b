//! How every matrix tile walks along K: segment by segment, and in each group by group.

/// Does `$group` for each k-group of `$tile`, a [`Tile`](crate::table::Tile) of `$height` rows, with the
/// rows' pointers (to `$unit`s) and the position behind them, which grows by `$step`.
///
/// Both loops test at their end, as a tile has at least one group: a loop that may run zero times costs
/// copies of all sums. A macro, because what it is done in must have the kernel's instruction set.
macro_rules! walk {
    ($tile:ident, $height:ident, $unit:ty, $step:expr, |$rows:ident, $at:ident| $group:block) => {
        let mut table = $tile.rows;
        let end = $tile.rows.wrapping_add($tile.segments * $height);
        loop {
            let mut $rows = [core::ptr::null::<$unit>(); $height];
            for (r, row) in $rows.iter_mut().enumerate() {
                // SAFETY: by the contract of `Tile` there are `segments × height` pointers.
                *row = unsafe { *table.add(r) }.cast();
            }
            let mut $at = 0;
            loop {
                $group
                $at += $step;
                if $at == $tile.groups * $step {
                    break;
                }
            }
            table = table.wrapping_add($height);
            if table == end {
                break;
            }
        }
    };
}

pub(crate) use walk;

//! Lists of one length, turned so that item k of every list is in one register.

use super::lanes::{Lanes, MAX_LANES};
use pulp::Simd;

/// As many lists as a register has lanes, all of the same length m, with room for what the kernels keep.
pub struct Tile<S: Simd> {
    /// γ, `(m)`.
    pub gamma: Vec<Lanes<S>>,
    /// Rewards, `(m)`; meaningless where a batch has none.
    pub rewards: Vec<Lanes<S>>,
    /// Gains of LiPO, `(m)`.
    pub gains: Vec<Lanes<S>>,
    /// dL/dγ, `(m)`.
    pub d: Vec<Lanes<S>>,
    /// Room for the kernels, `(m)` each.
    pub a: Vec<Lanes<S>>,
    pub b: Vec<Lanes<S>>,
    pub c: Vec<Lanes<S>>,
    pub log: Vec<Lanes<S>>,
}

impl<S: Simd> Tile<S> {
    /// Room for lists of `m` items.
    pub fn new(simd: S, m: usize) -> Self {
        let zeros = || vec![Lanes::splat(simd, 0.0); m];
        Self {
            gamma: zeros(),
            rewards: zeros(),
            gains: zeros(),
            d: zeros(),
            a: zeros(),
            b: zeros(),
            c: zeros(),
            log: zeros(),
        }
    }

    /// Length of the lists.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.gamma.len()
    }
}

/// Floats of 128 bits, and how many columns are turned at a time.
pub const QUAD: usize = 4;

/// The length of lists that are loaded and stored with offsets known to the compiler where they lie side by side: the
/// turning is a third of the work of a softmax loss, and most of that third would be finding the lists.
pub const SIDE_BY_SIDE: usize = 16;

/// Such a list.
pub type List = [f32; SIDE_BY_SIDE];

/// Such a list in pieces of 128 bits.
type Pieces = [[f32; QUAD]; SIDE_BY_SIDE / QUAD];

/// Whether 128 bits are a part of a register.
pub const fn has_quads<S: Simd>() -> bool {
    S::F32_LANES.is_multiple_of(QUAD)
}

/// `tile[k]` gets item k of every list; lane `l` is the list that begins at `starts[l]` of `items`.
///
/// Returns 0 for every list whose items are all finite, NaN for the others.
#[inline(always)]
pub fn load<S: Simd>(simd: S, items: &[f32], starts: &[usize], tile: &mut [Lanes<S>]) -> Lanes<S> {
    let m = tile.len();
    let mut lists: [&[f32]; MAX_LANES] = [&[]; MAX_LANES];
    for (list, &start) in lists.iter_mut().zip(starts) {
        *list = &items[start..start + m];
    }
    let (columns, rest) = if has_quads::<S>() { tile.as_chunks_mut() } else { (&mut [][..], tile) };
    let mut check = turn_in(simd, columns, |list, quad| lists[list].as_chunks().0[quad]);
    let done = m - rest.len();
    for (k, column) in rest.iter_mut().enumerate() {
        *column = Lanes::from_fn(simd, |l| lists[l][done + k]);
        check = column.mul_add(column.all(0.0), check);
    }
    check
}

/// [`load`] of lists of [`SIDE_BY_SIDE`] items that fill `items`, one after another.
#[inline(always)]
pub fn load_side_by_side<S: Simd, const N: usize>(simd: S, items: &[f32], tile: &mut [Lanes<S, N>]) -> Lanes<S, N> {
    let lists: &[Pieces] = &bytemuck::cast_slice(items)[..Lanes::<S, N>::COUNT];
    turn_in(simd, tile.as_chunks_mut().0, |list, quad| lists[list][quad])
}

/// The reverse of [`load`].
#[inline(always)]
pub fn store<S: Simd>(simd: S, tile: &[Lanes<S>], starts: &[usize], items: &mut [f32]) {
    let m = tile.len();
    let (columns, rest) = if has_quads::<S>() { tile.as_chunks() } else { (&[][..], tile) };
    turn_out(simd, columns, |list, quad, x| {
        items[starts[list]..starts[list] + m].as_chunks_mut().0[quad] = x;
    });
    let done = m - rest.len();
    for (k, column) in rest.iter().enumerate() {
        for (x, start) in column.as_slice().iter().zip(starts) {
            items[start + done + k] = *x;
        }
    }
}

/// The reverse of [`load_side_by_side`].
#[inline(always)]
pub fn store_side_by_side<S: Simd, const N: usize>(simd: S, tile: &[Lanes<S, N>], items: &mut [f32]) {
    let lists: &mut [Pieces] = &mut bytemuck::cast_slice_mut(items)[..Lanes::<S, N>::COUNT];
    turn_out(simd, tile.as_chunks().0, |list, quad, x| lists[list][quad] = x);
}

/// Turns lists given by pieces, `piece(list, quad)`, into columns; returns what [`load`] does.
///
/// Register r of a half is loaded with a piece of each of its lists r, r + 4, r + 8 …, and pulp turns four registers
/// within each 128 bits, so that lane l is list l again.
#[inline(always)]
fn turn_in<S: Simd, const N: usize>(
    simd: S,
    columns: &mut [[Lanes<S, N>; QUAD]],
    piece: impl Fn(usize, usize) -> [f32; QUAD],
) -> Lanes<S, N> {
    let zero = Lanes::splat(simd, 0.0);
    // 0·x is NaN where x is not finite. Four sums, for they are chains of additions.
    let mut checks = [zero; QUAD];
    for half in 0..N {
        let first = half * S::F32_LANES;
        for (quad, columns) in columns.iter_mut().enumerate() {
            let mut rows = [zero.x[0]; QUAD];
            for (r, row) in rows.iter_mut().enumerate() {
                let row: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(row));
                for (part, row) in row.as_chunks_mut::<QUAD>().0.iter_mut().enumerate() {
                    *row = piece(first + part * QUAD + r, quad);
                }
            }
            let turned = simd.deinterleave_shfl_f32s(rows);
            for k in 0..QUAD {
                columns[k].x[half] = turned[k];
                checks[k].x[half] = simd.mul_add_e_f32s(turned[k], zero.x[0], checks[k].x[half]);
            }
        }
    }
    (checks[0] + checks[1]) + (checks[2] + checks[3])
}

/// The reverse of [`turn_in`]; `put(list, quad, piece)` takes the pieces.
#[inline(always)]
fn turn_out<S: Simd, const N: usize>(
    simd: S,
    columns: &[[Lanes<S, N>; QUAD]],
    mut put: impl FnMut(usize, usize, [f32; QUAD]),
) {
    for half in 0..N {
        let first = half * S::F32_LANES;
        for (quad, columns) in columns.iter().enumerate() {
            let mut rows = [simd.splat_f32s(0.0); QUAD];
            for (row, column) in rows.iter_mut().zip(columns) {
                *row = column.x[half];
            }
            let rows = simd.interleave_shfl_f32s(rows);
            for (r, row) in rows.iter().enumerate() {
                let row: &[f32] = bytemuck::cast_slice(std::slice::from_ref(row));
                for (part, row) in row.as_chunks::<QUAD>().0.iter().enumerate() {
                    put(first + part * QUAD + r, quad, *row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, Scalar, Scalar128b, WithSimd};

    /// Loads lists of `m` items that lie apart, checks where every item is, and stores them elsewhere.
    struct RoundTrip(usize);

    impl WithSimd for RoundTrip {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (m, count) = (self.0, Lanes::<S>::COUNT);
            let items: Vec<f32> = (0..count * (m + 3)).map(|i| i as f32).collect();
            let starts: Vec<usize> = (0..count).rev().map(|l| l * (m + 3) + 1).collect();
            let mut tile = vec![Lanes::splat(simd, -1.0); m];
            load(simd, &items, &starts, &mut tile);
            for (k, column) in tile.iter().enumerate() {
                let want: Vec<f32> = starts.iter().map(|start| (start + k) as f32).collect();
                assert_eq!(column.as_slice(), want, "item {k} of lists of {m}");
            }
            let mut back = vec![-1.0; items.len()];
            store(simd, &tile, &starts, &mut back);
            for (i, (back, item)) in back.iter().zip(&items).enumerate() {
                let inside = (1..=m).contains(&(i % (m + 3)));
                assert_eq!(*back, if inside { *item } else { -1.0 }, "position {i} of lists of {m}");
            }
        }
    }

    /// Lists side by side by either way.
    struct Both;

    impl WithSimd for Both {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            if !has_quads::<S>() {
                return;
            }
            let count = Lanes::<S>::COUNT;
            let items: Vec<f32> = (0..count * SIDE_BY_SIDE).map(|i| i as f32).collect();
            let starts: Vec<usize> = (0..count).map(|l| l * SIDE_BY_SIDE).collect();
            let mut tiles = [const { Vec::new() }; 2];
            tiles.iter_mut().for_each(|tile| *tile = vec![Lanes::splat(simd, -1.0); SIDE_BY_SIDE]);
            load(simd, &items, &starts, &mut tiles[0]);
            load_side_by_side(simd, &items, &mut tiles[1]);
            for (a, b) in tiles[0].iter().zip(&tiles[1]) {
                assert_eq!(a.as_slice(), b.as_slice());
            }
            let mut back = vec![-1.0; items.len()];
            store_side_by_side(simd, &tiles[0], &mut back);
            assert_eq!(back, items);
        }
    }

    #[test]
    fn lists_side_by_side_need_no_starts() {
        Arch::new().dispatch(Both);
        Both.with_simd(Scalar128b);
    }

    #[test]
    fn turning_and_turning_back_moves_no_item() {
        for m in [0, 1, 3, 4, 5, 8, 16, 19] {
            Arch::new().dispatch(RoundTrip(m));
            RoundTrip(m).with_simd(Scalar);
            RoundTrip(m).with_simd(Scalar128b);
        }
    }
}

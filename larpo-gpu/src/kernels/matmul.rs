//! Matrix products: every layout, set or accumulated, with a bias, on parts of matrices.

use super::{check, slot, tuning, word};
use crate::buffer::View;
use crate::recorder::{BYTE, Dispatch};
use crate::shader::{Access, Shader};
use crate::{Buffer, Gpu, Recorder, Store, Weight};

const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::Write];

/// A variant for one precision of the right operand.
macro_rules! shader {
    ($file:literal, $precision:literal, $suffix:literal) => {
        Shader {
            name: concat!($file, $suffix),
            wgsl: concat!(
                include_str!(concat!($file, ".wgsl")),
                include_str!(concat!("matmul_b_", $precision, ".wgsl"))
            ),
            entries: &[$file],
            bindings: BINDINGS,
        }
    };
}

/// Tiles of 64 × 64 in shared memory: for results of few tiles.
pub static TILE_64: Shader = shader!("matmul_64", "f32", "");

/// Tiles of 128 × 128 in shared memory.
pub static TILE_128: Shader = shader!("matmul_128", "f32", "");

/// Without shared memory: for CPU adapters.
pub static DIRECT: Shader = shader!("matmul_direct", "f32", "");

/// Eight rows at a time: for few rows, as decoding has.
pub static SKINNY: Shader = shader!("matmul_skinny", "f32", "");

/// [`TILE_64`] with a right operand in bfloat16.
pub static TILE_64_BF16: Shader = shader!("matmul_64", "bf16", "_bf16");

/// [`TILE_128`] with a right operand in bfloat16.
pub static TILE_128_BF16: Shader = shader!("matmul_128", "bf16", "_bf16");

/// [`DIRECT`] with a right operand in bfloat16.
pub static DIRECT_BF16: Shader = shader!("matmul_direct", "bf16", "_bf16");

/// [`SKINNY`] with a right operand in bfloat16.
pub static SKINNY_BF16: Shader = shader!("matmul_skinny", "bf16", "_bf16");

/// Matrix units of a kind, and the kernels for them. These need the features `SHADER_F16` and
/// `EXPERIMENTAL_COOPERATIVE_MATRIX`, and are chosen on a device that [`Gpu::open_half`](crate::Gpu::open_half) gave.
#[derive(Debug)]
pub struct MatrixUnits {
    /// Rows and columns of the matrices that they multiply.
    pub size: u32,
    /// Invocations of a subgroup.
    pub lanes: u32,
    /// With a right operand in single precision.
    pub f32: Shader,
    /// With a right operand in bfloat16.
    pub bf16: Shader,
}

/// The kernel for one kind of matrix units and one precision of the right operand.
macro_rules! units_shader {
    ($size:literal, $lanes:literal, $precision:literal, $suffix:literal) => {
        Shader {
            name: concat!("matmul_units_", $size, "x", $lanes, $suffix),
            wgsl: concat!(
                "enable f16;\nenable wgpu_cooperative_matrix;\n",
                concat!("alias Left = coop_mat", $size, "x", $size, "<f16, A>;\n"),
                concat!("alias Right = coop_mat", $size, "x", $size, "<f16, B>;\n"),
                concat!("alias Sum = coop_mat", $size, "x", $size, "<f32, C>;\n"),
                concat!("const SIZE: u32 = ", $size, "u;\nconst LANES: u32 = ", $lanes, "u;\n"),
                include_str!("matmul_units.wgsl"),
                include_str!(concat!("matmul_b_", $precision, ".wgsl"))
            ),
            entries: &["matmul_units"],
            bindings: BINDINGS,
        }
    };
}

macro_rules! units {
    ($size:literal, $lanes:literal) => {
        MatrixUnits {
            size: $size,
            lanes: $lanes,
            f32: units_shader!($size, $lanes, "f32", ""),
            bf16: units_shader!($size, $lanes, "bf16", "_bf16"),
        }
    };
}

/// The kinds of matrix units that have a kernel, the best first: those of NVIDIA and AMD, Apple's, and Mesa's software driver's.
pub static MATRIX_UNITS: [MatrixUnits; 4] = [units!(16, 32), units!(16, 64), units!(8, 32), units!(8, 8)];

/// Rows up to which [`Variant::Skinny`] is taken: it loads the right operand once for eight of them.
const SKINNY_ROWS: usize = 16;

/// The ways to compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// [`TILE_64`]
    Tile64,
    /// [`TILE_128`]
    Tile128,
    /// [`DIRECT`]
    Direct,
    /// [`SKINNY`]
    Skinny,
    /// One of [`MATRIX_UNITS`]: operands rounded to half precision.
    MatrixUnits,
}

impl Variant {
    /// Every variant that any device has.
    pub const ALL: [Self; 4] = [Self::Tile64, Self::Tile128, Self::Direct, Self::Skinny];

    /// Every variant that `gpu` has.
    pub fn of(gpu: &Gpu) -> impl Iterator<Item = Self> + use<> {
        Self::ALL.into_iter().chain(gpu.matrix_units().map(|_| Self::MatrixUnits))
    }

    /// The variant for `a · b` on the recorder's adapter: large tiles move less memory, small ones keep more of the device busy,
    /// and of few rows most of a tile would be empty.
    pub fn choose(recorder: &Recorder, a: &Matrix, b: &Matrix) -> Self {
        let (m, n) = (a.rows, b.columns);
        // Neighbours along k must be neighbours in memory.
        let skinny = m <= SKINNY_ROWS && b.row == 1;
        // As many large tiles as a mid-size GPU has processors.
        let large = m.div_ceil(128) * n.div_ceil(128) >= 64 && m >= 128 && n >= 128;
        let gpu = recorder.gpu();
        match gpu.is_cpu() {
            // On a CPU they are no faster, and taken because they were asked for.
            _ if gpu.matrix_units().is_some() && !skinny => Self::MatrixUnits,
            true => Self::Direct,
            false if skinny => Self::Skinny,
            false if large => Self::Tile128,
            false => Self::Tile64,
        }
    }

    /// Whether it may be the fastest for `(m, k) · (k, n)` on the recorder's adapter.
    pub(super) fn suits(self, recorder: &Recorder, (m, n, k): (usize, usize, usize)) -> bool {
        match self {
            // Beyond that it loads what the others share over and over.
            Self::Skinny => m <= 4 * SKINNY_ROWS,
            // Without shared memory a large product would hold a GPU up for seconds.
            Self::Direct => recorder.gpu().is_cpu() || m * n * k <= 1 << 27,
            Self::Tile64 | Self::Tile128 => true,
            Self::MatrixUnits => recorder.gpu().matrix_units().is_some(),
        }
    }
}

/// A matrix in a buffer: the rows may lie apart, and the first one anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    numbers: Weight<'a>,
    at: usize,
    rows: usize,
    columns: usize,
    /// Elements from one row (column) to the next.
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// `(rows, columns)`, row-major, from the start of `numbers`.
    ///
    /// # Panics
    /// Where there are fewer numbers.
    #[track_caller]
    pub fn new(numbers: impl Into<Weight<'a>>, rows: usize, columns: usize) -> Self {
        Self::at(numbers, 0, rows, columns)
    }

    /// `(rows, columns)`, row-major, from element `at` of `numbers`: a range of the rows of a larger matrix.
    ///
    /// # Panics
    /// Where there are fewer numbers.
    #[track_caller]
    pub fn at(numbers: impl Into<Weight<'a>>, at: usize, rows: usize, columns: usize) -> Self {
        let numbers = numbers.into();
        let fits =
            rows.checked_mul(columns).and_then(|len| len.checked_add(at)).is_some_and(|end| end <= numbers.len());
        assert!(fits, "matmul: ({rows}, {columns}) from element {at} in a buffer of {}", numbers.len());
        Self { numbers, at, rows, columns, row: columns, column: 1 }
    }

    /// Panics unless it is of single precision.
    #[track_caller]
    fn single(&self, operand: &str) {
        assert!(matches!(self.numbers, Weight::F32(_)), "matmul: {operand} in bfloat16");
    }

    /// Numbers in one element of its buffer.
    fn packed(&self) -> usize {
        match self.numbers {
            Weight::F32(_) => 1,
            Weight::Bf16(_) => 2,
        }
    }

    /// Elements of its buffer.
    fn buffer_len(&self) -> usize {
        self.numbers.len().div_ceil(self.packed())
    }

    /// Where the buffer has more elements than a binding shows, the lines along the larger stride that one does show.
    fn lines_of(&self, most: usize) -> Option<usize> {
        if self.buffer_len() <= most {
            return None;
        }
        let (stride, line) = if self.column <= self.row { (self.row, self.columns) } else { (self.column, self.rows) };
        // A part begins anywhere behind an aligned element.
        let room = (most * self.packed()).saturating_sub(line + 2 * View::ALIGNMENT);
        let lines = room / stride.max(1) + 1;
        Some(if lines > 128 { lines / 128 * 128 } else { lines })
    }

    /// Rows and columns.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Where its numbers are.
    pub(super) fn numbers(&self) -> Weight<'a> {
        self.numbers
    }

    /// Whether its memory holds the transpose.
    pub(super) fn is_transposed(&self) -> bool {
        self.column > self.row
    }

    /// The first `columns` columns.
    pub(super) fn first_columns(self, columns: usize) -> Self {
        self.part((0, self.rows), (0, columns))
    }

    /// Rows and columns (first, count) of it.
    fn part(self, (row, rows): (usize, usize), (column, columns): (usize, usize)) -> Self {
        Self { at: self.at + row * self.row + column * self.column, rows, columns, ..self }
    }

    /// What a kernel sees of its buffer, and the first number's place there.
    fn view(&self, most: usize) -> (View<'a>, usize) {
        let end = match self.rows * self.columns {
            0 => self.at,
            _ => self.at + (self.rows - 1) * self.row + (self.columns - 1) * self.column + 1,
        };
        let step = View::ALIGNMENT * self.packed();
        let (from, to) = match self.buffer_len() <= most {
            true => (0, self.numbers.len()),
            false => (self.at / step * step, end),
        };
        let range = from / self.packed()..to.div_ceil(self.packed());
        let view = match self.numbers {
            Weight::F32(x) => x.part(range),
            Weight::Bf16(x) => x.pairs().part(range),
        };
        (view, self.at - from)
    }

    /// The transpose, `(columns, rows)`, of the same memory.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }
}

/// `c (m, n) = a (m, k) · b (k, n)`, plus `bias (n)` in every row. Any of `a` and `b` may be
/// [transposed](Matrix::transposed): `x · wᵀ` is the forward product of a layer `w (out, in)`, `d_y · w` its gradient by `x`
/// and `d_yᵀ · x` by `w`. Only `b` may be in bfloat16.
///
/// # Panics
/// On shapes that do not fit, a transposed `c`, and a `c` in the buffer of an operand.
#[track_caller]
pub fn matmul(recorder: &mut Recorder, a: Matrix, b: Matrix, bias: Option<&Buffer>, c: Matrix, store: Store) {
    let variant = tuning::choose(recorder, a, b);
    matmul_as(recorder, variant, a, b, bias, c, store);
}

/// [`matmul`] by a chosen variant.
///
/// # Panics
/// As [`matmul`], and on [`Variant::MatrixUnits`] where the device has none.
#[track_caller]
pub fn matmul_as(
    recorder: &mut Recorder,
    variant: Variant,
    a: Matrix,
    b: Matrix,
    bias: Option<&Buffer>,
    c: Matrix,
    store: Store,
) {
    let (m, n, k) = (c.rows, c.columns, a.columns);
    let fit = a.rows == m && b.rows == k && b.columns == n && (c.column == 1 || c.columns == 1);
    assert!(fit, "matmul: ({}, {k}) · ({}, {}) -> ({m}, {n})", a.rows, b.rows, b.columns);
    if let Some(bias) = bias {
        check("matmul", "bias", bias, n);
    }
    // Parts of whole tiles: cut along m and n or not, every element is made by the same sums.
    let rows = recorder.submission_work() / (2.0 * n as f64 * k.max(1) as f64);
    let mut parts = [(rows as usize / 128 * 128).max(128), n, k];
    let most = recorder.binding();
    // What lies along the rows and columns of each: 0 is m, 1 is n, 2 is k.
    for (matrix, along) in [(a, [0, 2]), (b, [2, 1]), (c, [0, 1])] {
        let part = &mut parts[along[usize::from(matrix.column > matrix.row)]];
        *part = matrix.lines_of(most).map_or(*part, |lines| lines.min(*part));
    }
    let [m_part, n_part, k_part] = parts;
    for first_m in (0..m).step_by(m_part) {
        for first_n in (0..n).step_by(n_part.max(1)) {
            for first_k in (0..k.max(1)).step_by(k_part.max(1)) {
                let (m, n, k) = (m_part.min(m - first_m), n_part.min(n - first_n), k_part.min(k - first_k));
                let a = a.part((first_m, m), (first_k, k));
                let b = b.part((first_k, k), (first_n, n));
                let c = c.part((first_m, m), (first_n, n));
                let store = if first_k == 0 { store } else { Store::Add };
                let bias = bias.filter(|_| first_k == 0).map(|bias| (bias, first_n));
                record(recorder, variant, [a, b, c], bias, store);
            }
        }
    }
}

fn record(
    recorder: &mut Recorder,
    variant: Variant,
    [a, b, c]: [Matrix<'_>; 3],
    bias: Option<(&Buffer, usize)>,
    store: Store,
) {
    let (m, n, k) = (c.rows, c.columns, a.columns);
    let tiles = |side: usize| (n.div_ceil(side), m.div_ceil(side) * n.div_ceil(side));
    let (single, half, (tiles_n, groups)) = match variant {
        Variant::Tile64 => (&TILE_64, &TILE_64_BF16, tiles(64)),
        Variant::Tile128 => (&TILE_128, &TILE_128_BF16, tiles(128)),
        Variant::Skinny => (&SKINNY, &SKINNY_BF16, (n.div_ceil(4), m.div_ceil(8) * n.div_ceil(4))),
        Variant::Direct => (&DIRECT, &DIRECT_BF16, (n.div_ceil(16), (m.div_ceil(8) * n.div_ceil(16)).div_ceil(16))),
        Variant::MatrixUnits => {
            let units = recorder.gpu().matrix_units().expect("a device opened for half precision");
            (&units.f32, &units.bf16, tiles(8 * units.size as usize))
        }
    };
    let shader = match b.numbers {
        Weight::F32(_) => single,
        Weight::Bf16(_) => half,
    };
    let none = recorder.none();
    let (bias_view, bias_at) = bias.map_or((slot(&none), 0), |(bias, at)| (slot(bias), at));
    let most = recorder.binding();
    a.single("the left operand");
    c.single("a result");
    let [(a_view, a_at), (b_view, b_at), (c_view, c_at)] = [a.view(most), b.view(most), c.view(most)];
    recorder.record(&Dispatch {
        shader,
        entry: shader.entries[0],
        buffers: &[a_view, b_view, bias_view, c_view],
        params: &[
            word(m),
            word(n),
            word(k),
            word(tiles_n),
            word(a_at),
            word(a.row),
            word(a.column),
            word(b_at),
            word(b.row),
            word(b.column),
            word(c_at),
            word(c.row),
            store.flag(),
            u32::from(bias.is_some()),
            word(bias_at),
        ],
        groups: groups as u64,
        work: 2.0 * m as f64 * n as f64 * k as f64 + BYTE * 4.0 * (m * n) as f64,
    });
}

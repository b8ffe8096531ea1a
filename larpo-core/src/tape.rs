//! Reverse-mode differentiation over a dynamic tape of fused operations.
//!
//! A [`Var`] is a matrix on the device and a [`Link`] to where its gradient goes. [`Tape::record`] takes the gradient of an
//! operation at the moment its result is made, so an operation without a gradient cannot be written; stopping a gradient is
//! said with [`Var::detach`]. Going backward consumes the tape from its end: what an operation saved is dropped as soon as
//! its gradient is done, and its buffers are used again.

use crate::backend::{Backend, Store};
use std::cell::RefCell;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Constant,
    Node(usize),
    Parameter(usize),
}

/// Where the gradient of a value goes, without the value: a gradient that does not need the value keeps only this.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    source: Source,
    len: usize,
}

impl Link {
    /// Whether a gradient flows into the value.
    pub fn needs_grad(&self) -> bool {
        self.source != Source::Constant
    }
}

type Recipe<B> = Arc<dyn Fn(&B) -> <B as Backend>::Buffer>;

/// What a gradient keeps of a value: the value itself, or how to make it again where that costs next to nothing.
pub enum Saved<B: Backend> {
    /// The value.
    Value(Arc<B::Buffer>),
    /// How to make it again, from values that are kept anyway.
    Recipe(Recipe<B>),
}

impl<B: Backend> Saved<B> {
    /// The value.
    pub fn get(&self, backend: &B) -> Arc<B::Buffer> {
        match self {
            Self::Value(value) => value.clone(),
            Self::Recipe(recipe) => Arc::new(recipe(backend)),
        }
    }
}

/// A matrix `(rows, cols)` on the device.
pub struct Var<B: Backend> {
    link: Link,
    value: Arc<B::Buffer>,
    recipe: Option<Recipe<B>>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

impl<B: Backend> Clone for Var<B> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), recipe: self.recipe.clone(), ..*self }
    }
}

impl<B: Backend> Var<B> {
    fn new(source: Source, value: Arc<B::Buffer>, rows: usize, cols: usize) -> Self {
        Self { link: Link { source, len: rows * cols }, value, recipe: None, rows, cols }
    }

    /// A value without a gradient.
    pub fn constant(value: Arc<B::Buffer>, rows: usize, cols: usize) -> Self {
        Self::new(Source::Constant, value, rows, cols)
    }

    /// Parameter number `index`, sharing its storage.
    pub fn parameter(index: usize, value: Arc<B::Buffer>, rows: usize, cols: usize) -> Self {
        Self::new(Source::Parameter(index), value, rows, cols)
    }

    /// The same value, cut off from what made it.
    pub fn detach(&self) -> Self {
        Self::new(Source::Constant, self.value.clone(), self.rows, self.cols)
    }

    /// The same value, which gradients make again with `recipe` instead of keeping it. The recipe must give the same bits.
    pub fn recomputed(self, recipe: impl Fn(&B) -> B::Buffer + 'static) -> Self {
        Self { recipe: Some(Arc::new(recipe)), ..self }
    }

    /// What a gradient that needs the value is to keep of it.
    pub fn saved(&self) -> Saved<B> {
        match &self.recipe {
            Some(recipe) => Saved::Recipe(recipe.clone()),
            None => Saved::Value(self.value.clone()),
        }
    }

    /// The numbers.
    pub fn value(&self) -> &B::Buffer {
        &self.value
    }

    /// Where its gradient goes.
    pub fn link(&self) -> Link {
        self.link
    }

    /// The numbers to change in place: moved out where nobody else holds them, copied otherwise.
    pub fn into_buffer(self, backend: &B) -> B::Buffer {
        Arc::try_unwrap(self.value).unwrap_or_else(|shared| {
            let mut copy = backend.alloc(self.link.len);
            backend.copy(&shared, &mut copy, Store::Set);
            copy
        })
    }
}

type GradFn<B> = Box<dyn FnOnce(&B, <B as Backend>::Buffer, &mut Flow<B>)>;

/// Records operations with their gradients.
pub struct Tape<B: Backend> {
    backend: B,
    nodes: RefCell<Vec<GradFn<B>>>,
    recording: bool,
    /// What tells the pass apart from others where something is left out at random.
    dropout: Option<[u32; 2]>,
}

impl<B: Backend> Tape<B> {
    /// A tape that records.
    pub fn new(backend: &B) -> Self {
        Self { backend: backend.clone(), nodes: RefCell::default(), recording: true, dropout: None }
    }

    /// A tape that records nothing, for forward passes without a gradient.
    pub fn inference(backend: &B) -> Self {
        Self { backend: backend.clone(), nodes: RefCell::default(), recording: false, dropout: None }
    }

    /// With dropout, drawn for pass number `pass` of update `update`; without this a pass leaves nothing out.
    pub fn with_dropout(self, update: u64, pass: usize) -> Self {
        Self { dropout: Some([update as u32, pass as u32]), ..self }
    }

    /// Update and pass that dropout is drawn for; none where nothing is left out.
    pub fn dropout(&self) -> Option<[u32; 2]> {
        self.dropout
    }

    /// The backend that computes.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Makes a value together with its gradient.
    ///
    /// `grad` gets the gradient of the result and hands on those of the `inputs`. It is kept only if one of them needs a
    /// gradient. Pass an [`Arc`] where the gradient needs the result itself.
    pub fn record(
        &self,
        value: impl Into<Arc<B::Buffer>>,
        (rows, cols): (usize, usize),
        inputs: &[Link],
        grad: impl FnOnce(&B, B::Buffer, &mut Flow<B>) + 'static,
    ) -> Var<B> {
        let mut source = Source::Constant;
        if self.recording && inputs.iter().any(Link::needs_grad) {
            let mut nodes = self.nodes.borrow_mut();
            source = Source::Node(nodes.len());
            nodes.push(Box::new(grad));
        }
        Var::new(source, value.into(), rows, cols)
    }

    /// Whether it records.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// `block` of `x`, of which nothing but `x` is kept: going backward it is computed once more (Chen et al. 2016). It must
    /// give the same bits both times.
    pub fn recompute(&self, x: Var<B>, block: impl Fn(&Self, Var<B>) -> Var<B> + 'static) -> Var<B> {
        if !self.recording {
            return block(self, x);
        }
        let (link, value, rows, cols, dropout) = (x.link, x.value.clone(), x.rows, x.cols, self.dropout);
        let y = block(&Self { dropout, ..Self::inference(&self.backend) }, x);
        let mut nodes = self.nodes.borrow_mut();
        let source = Source::Node(nodes.len());
        nodes.push(Box::new(move |b: &B, d_y, flow: &mut Flow<B>| {
            let tape = Self { dropout, ..Self::new(b) };
            // Stands for what made the input.
            tape.nodes.borrow_mut().push(Box::new(|_, _, _| ()));
            let source = if link.needs_grad() { Source::Node(0) } else { Source::Constant };
            let y = block(&tape, Var::new(source, value, rows, cols)).link;
            let mut nodes = tape.nodes.into_inner();
            let inner = (0..nodes.len()).map(|_| None).collect();
            let mut of_block = Flow { inner, gradients: &mut *flow.gradients };
            of_block.give(b, y, d_y);
            while nodes.len() > 1 {
                let (grad, d) = (nodes.pop(), of_block.inner.pop().flatten());
                if let (Some(grad), Some(d)) = (grad, d) {
                    grad(b, d, &mut of_block);
                }
            }
            if let Some(d_x) = of_block.inner.pop().flatten() {
                flow.give(b, link, d_x);
            }
        }));
        Var::new(source, y.value, y.rows, y.cols)
    }

    /// Runs the tape backward from the scalar `loss`, adding to the gradients of the parameters.
    #[track_caller]
    pub fn backward(self, loss: &Var<B>, gradients: &mut Gradients<B>) {
        self.backward_scaled(loss, 1.0, gradients);
    }

    /// [`Tape::backward`] from `scale · loss`.
    #[track_caller]
    pub fn backward_scaled(self, loss: &Var<B>, scale: f64, gradients: &mut Gradients<B>) {
        assert_eq!((loss.rows, loss.cols), (1, 1), "backward: the loss is a scalar");
        let mut nodes = self.nodes.into_inner();
        let mut flow = Flow { inner: (0..nodes.len()).map(|_| None).collect(), gradients };
        let mut one = self.backend.alloc(1);
        self.backend.fill(&mut one, scale);
        flow.give(&self.backend, loss.link, one);
        while let Some(grad) = nodes.pop() {
            // A node that nothing downstream used has no gradient.
            if let Some(d) = flow.inner.pop().flatten() {
                grad(&self.backend, d, &mut flow);
            }
        }
    }
}

/// Gradients on their way back.
pub struct Flow<'a, B: Backend> {
    inner: Vec<Option<B::Buffer>>,
    gradients: &'a mut Gradients<B>,
}

impl<B: Backend> Flow<'_, B> {
    /// Takes the gradient of `x` out, to be written to as [`Store`] says and [`Flow::put`] back; none if not wanted.
    pub fn take(&mut self, backend: &B, x: Link) -> Option<(B::Buffer, Store)> {
        let (slot, fresh) = match x.source {
            Source::Constant => return None,
            Source::Node(index) => (self.inner[index].take(), false),
            Source::Parameter(index) => {
                let entry = &mut self.gradients.entries[index];
                (entry.buffer.take(), entry.fresh)
            }
        };
        let store = if slot.is_some() && !fresh { Store::Add } else { Store::Set };
        Some((slot.unwrap_or_else(|| backend.alloc(x.len)), store))
    }

    /// Puts back what [`Flow::take`] took.
    pub fn put(&mut self, x: Link, gradient: B::Buffer) {
        match x.source {
            Source::Constant => {}
            Source::Node(index) => self.inner[index] = Some(gradient),
            Source::Parameter(index) => {
                self.gradients.entries[index] = Entry { buffer: Some(gradient), fresh: false };
            }
        }
    }

    /// Lets `write` put the gradient of `x` in place, if it is wanted.
    pub fn with(&mut self, backend: &B, x: Link, write: impl FnOnce(&mut B::Buffer, Store)) {
        if let Some((mut gradient, store)) = self.take(backend, x) {
            write(&mut gradient, store);
            self.put(x, gradient);
        }
    }

    /// Hands over a finished gradient of `x`.
    pub fn give(&mut self, backend: &B, x: Link, gradient: B::Buffer) {
        match x.source {
            Source::Node(index) if self.inner[index].is_none() => self.inner[index] = Some(gradient),
            _ => self.with(backend, x, |d, store| backend.copy(&gradient, d, store)),
        }
    }
}

struct Entry<B: Backend> {
    buffer: Option<B::Buffer>,
    /// The next write starts afresh; what the buffer holds is stale.
    fresh: bool,
}

/// Gradients of the parameters, kept across steps so that they accumulate in place over micro-batches.
pub struct Gradients<B: Backend> {
    entries: Vec<Entry<B>>,
}

impl<B: Backend> Gradients<B> {
    /// No gradients yet for `parameters` parameters.
    pub fn new(parameters: usize) -> Self {
        Self { entries: (0..parameters).map(|_| Entry { buffer: None, fresh: true }).collect() }
    }

    /// Forgets the gradients and keeps their memory.
    pub fn zero(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.fresh = true);
    }

    /// Gradient of parameter `index`; none where no backward pass has reached it since [`Gradients::zero`].
    pub fn get(&self, index: usize) -> Option<&B::Buffer> {
        self.entries[index].buffer.as_ref().filter(|_| !self.entries[index].fresh)
    }
}

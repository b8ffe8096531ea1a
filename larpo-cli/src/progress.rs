//! Progress on stderr: a bar with rate and remaining time on a terminal, plain lines elsewhere, nothing where only warnings
//! are shown.
//!
//! stdout is never touched. Lines printed through [`Progress::message`] appear above the bar.

use crate::messages::{self, Level};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Least time between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Progress of one loop of known length; it may be shared between threads.
pub struct Progress {
    label: String,
    kind: Kind,
}

enum Kind {
    Bar { bar: ProgressBar, kept: AtomicU64, unit: &'static str },
    Plain(Mutex<Plain>),
}

/// State of the plain lines; `out` is stderr except in tests.
struct Plain {
    total: u64,
    done: u64,
    /// Of those, what an earlier session did: no part of the rate.
    kept: u64,
    unit: &'static str,
    note: String,
    start: Instant,
    last: Instant,
    out: Box<dyn Write + Send>,
}

impl Progress {
    /// Starts a loop of `total` items called `unit` (such as `steps`), under `label`.
    pub fn new(label: impl Into<String>, total: u64, unit: &'static str) -> Progress {
        let label = label.into();
        match (messages::shows(Level::Info), std::io::stderr().is_terminal() && !messages::dumb_terminal()) {
            (false, _) => Progress::plain(label, total, unit, Box::new(std::io::sink())),
            (true, true) => {
                let kind = Kind::Bar { bar: bar(&label, total, unit), kept: AtomicU64::new(0), unit };
                Progress { label, kind }
            }
            (true, false) => Progress::plain(label, total, unit, Box::new(std::io::stderr())),
        }
    }

    fn plain(label: String, total: u64, unit: &'static str, out: Box<dyn Write + Send>) -> Self {
        let now = Instant::now();
        let plain = Plain { total, done: 0, kept: 0, unit, note: String::new(), start: now, last: now, out };
        Progress { label, kind: Kind::Plain(Mutex::new(plain)) }
    }

    /// Marks `n` more items as done.
    pub fn advance(&self, n: u64) {
        self.with_plain(|bar| bar.inc(n), |plain, label| plain.advance(label, n, Instant::now()));
    }

    /// Marks the first `n` items as done before; they count neither for the rate nor for what is said at the end.
    pub fn kept(&self, n: u64) {
        if let Kind::Bar { kept, .. } = &self.kind {
            kept.store(n, Ordering::Relaxed);
        }
        self.with_plain(
            |bar| {
                bar.set_position(n);
                bar.reset_eta();
            },
            |plain, _| (plain.done, plain.kept) = (n, n),
        );
    }

    /// Sets the text at the end of the bar or line, such as the present loss.
    pub fn note(&self, text: impl Into<String>) {
        let text = text.into();
        match &self.kind {
            Kind::Bar { bar, .. } => bar.set_message(text),
            Kind::Plain(_) => self.with_plain(|_| {}, |plain, _| plain.note = text),
        }
    }

    /// Prints a line of its own, above the bar where there is one.
    pub fn message(&self, line: &str) {
        // `suspend`, not `println`: the latter drops the line when the bar is hidden.
        self.with_plain(|bar| bar.suspend(|| say!("{line}")), |plain, _| plain.line(line));
    }

    /// Ends the loop: the bar disappears, and one line says how long it took.
    pub fn finish(self) {
        let label = &self.label;
        let ended =
            |n: u64, unit, took| format!("{label}: {} done in {}", messages::count(n as usize, unit), duration(took));
        match &self.kind {
            Kind::Bar { bar, kept, unit } => {
                bar.finish_and_clear();
                let done = bar.position() - kept.load(Ordering::Relaxed);
                say!("{}", ended(done, unit, bar.elapsed()));
            }
            Kind::Plain(_) => self.with_plain(
                |_| {},
                |plain, _| plain.line(&ended(plain.done - plain.kept, plain.unit, plain.start.elapsed())),
            ),
        }
    }

    fn with_plain(&self, on_bar: impl FnOnce(&ProgressBar), on_plain: impl FnOnce(&mut Plain, &str)) {
        match &self.kind {
            Kind::Bar { bar, .. } => on_bar(bar),
            // A thread that panicked while printing left nothing half-done that matters here.
            Kind::Plain(plain) => {
                on_plain(&mut plain.lock().unwrap_or_else(|e| e.into_inner()), &self.label);
            }
        }
    }
}

/// A bar on stderr with rate and remaining time.
fn bar(label: &str, total: u64, unit: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A failed write to the line being drawn leaves nothing to do about it.
        let _ = out.write_str(&rate(state.per_sec(), unit));
    };
    let template = "{prefix} {bar:28} {pos}/{len} {rate}, {eta} left  {msg}";
    // The template is a constant, so the fallback to the default style is never taken.
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("rate", rate);
    bar.set_style(style);
    bar.set_prefix(label.to_string());
    bar
}

impl Plain {
    fn line(&mut self, text: &str) {
        // A closed stderr must not stop the work it reports on.
        let _ = writeln!(self.out, "{text}");
    }

    fn advance(&mut self, label: &str, n: u64, now: Instant) {
        self.done += n;
        if now.duration_since(self.last) < PLAIN_EVERY {
            return;
        }
        self.last = now;
        let seconds = now.duration_since(self.start).as_secs_f64();
        let per_second = (self.done - self.kept) as f64 / seconds;
        let mut text = format!("{label}: {}/{} {}, {}", self.done, self.total, self.unit, rate(per_second, self.unit));
        let left = self.total.saturating_sub(self.done);
        if let Ok(left) = Duration::try_from_secs_f64(left as f64 / per_second) {
            // Writing to a String cannot fail.
            let _ = write!(text, ", {} left", duration(left));
        }
        if !self.note.is_empty() {
            text.push_str("  ");
            text.push_str(&self.note);
        }
        self.line(&text);
    }
}

/// `12.3 steps/s`, with about three digits.
fn rate(per_second: f64, unit: &str) -> String {
    match per_second {
        r if r >= 100.0 => format!("{r:.0} {unit}/s"),
        r if r >= 10.0 => format!("{r:.1} {unit}/s"),
        r => format!("{r:.2} {unit}/s"),
    }
}

/// `8.2 s`, `3 min 05 s` or `2 h 07 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A place to write to that the test can read.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("unpoisoned").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("unpoisoned").clone()).expect("UTF-8")
        }
    }

    #[test]
    fn plain_lines_come_every_few_seconds_with_rate_and_time_left() {
        let (sink, start) = (Sink::default(), Instant::now());
        let mut plain = Plain {
            total: 100,
            done: 0,
            kept: 0,
            unit: "steps",
            note: "loss 1.5".into(),
            start,
            last: start,
            out: Box::new(sink.clone()),
        };
        let at = |seconds| start + Duration::from_secs(seconds);
        plain.advance("sft", 10, at(1));
        assert_eq!(sink.text(), "");
        plain.advance("sft", 10, at(5));
        assert_eq!(sink.text(), "sft: 20/100 steps, 4.00 steps/s, 20.0 s left  loss 1.5\n");
        plain.advance("sft", 10, at(9));
        assert_eq!(sink.text().lines().count(), 1);
        plain.advance("sft", 70, at(10));
        let last = "sft: 100/100 steps, 10.0 steps/s, 0.0 s left  loss 1.5";
        assert_eq!(sink.text().lines().last(), Some(last));
    }

    #[test]
    fn nothing_done_yet_gives_no_remaining_time() {
        let (sink, start) = (Sink::default(), Instant::now());
        let out = Box::new(sink.clone());
        let note = String::new();
        let mut plain = Plain { total: 9, done: 0, kept: 0, unit: "rows", note, start, last: start, out };
        plain.advance("x", 0, start + Duration::from_secs(6));
        assert_eq!(sink.text(), "x: 0/9 rows, 0.00 rows/s\n");
    }

    #[test]
    fn messages_and_the_end_are_lines_of_their_own() {
        let sink = Sink::default();
        let progress = Progress::plain("sample".into(), 4, "prompts", Box::new(sink.clone()));
        progress.advance(1);
        progress.note("unseen until a line is due");
        progress.message("warning: w");
        progress.advance(3);
        progress.finish();
        let text = sink.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[0], "warning: w");
        assert!(lines[1].starts_with("sample: 4 prompts done in 0.0 s"), "{text}");
    }

    #[test]
    fn what_was_done_before_counts_neither_for_the_rate_nor_at_the_end() {
        let sink = Sink::default();
        let progress = Progress::plain("sft".into(), 100, "steps", Box::new(sink.clone()));
        progress.kept(90);
        progress.with_plain(|_| {}, |plain, label| plain.advance(label, 5, plain.start + Duration::from_secs(5)));
        assert_eq!(sink.text(), "sft: 95/100 steps, 1.00 steps/s, 5.0 s left\n");
        progress.finish();
        assert!(sink.text().contains("sft: 5 steps done in "), "{}", sink.text());
    }

    #[test]
    fn threads_share_one_progress() {
        let sink = Sink::default();
        let progress = Progress::plain("t".into(), 400, "items", Box::new(sink.clone()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| progress.advance(1)));
            }
        });
        progress.finish();
        assert!(sink.text().starts_with("t: 400 items done"), "{}", sink.text());
    }

    #[test]
    fn durations_read_well() {
        let of = |seconds: f64| duration(Duration::from_secs_f64(seconds));
        assert_eq!(of(0.04), "0.0 s");
        assert_eq!(of(59.94), "59.9 s");
        assert_eq!(of(59.96), "1 min 00 s");
        assert_eq!(of(185.0), "3 min 05 s");
        assert_eq!(of(7620.0), "2 h 07 min");
    }

    /// A terminal 100 columns wide that only collects what is written.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn push(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().expect("unpoisoned").push_str(text);
            Ok(())
        }
    }

    impl indicatif::TermLike for Screen {
        fn width(&self) -> u16 {
            100
        }
        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.push(text)
        }
        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.push(text)
        }
        fn clear_line(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_bar_shows_label_count_and_note() {
        let screen = Screen::default();
        let shown = bar("align", 40, "lists");
        shown.set_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        shown.set_message("loss 0.69");
        shown.inc(10);
        shown.tick();
        let text = screen.0.lock().expect("unpoisoned").clone();
        for part in ["align", "10/40", "lists/s", "left", "loss 0.69"] {
            assert!(text.contains(part), "{part} is missing from {text:?}");
        }
    }
}

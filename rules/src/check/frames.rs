//! Window functions over frames that move: rows that leave a frame must be taken out of an aggregate again.

use std::ops::ControlFlow;

use sqlparser::ast::{Expr, NamedWindowExpr, Query, Select, Visit, Visitor, WindowFrameBound, WindowSpec, WindowType};

use super::Reading;
use crate::tree::call_name;

/// Aggregates that no row can be taken out of.
const GROWING: [&str; 6] = ["bool_and", "bool_or", "latest", "percentile", "register_usage", "weighted"];

/// Refuses aggregates over frames that they cannot move with.
pub(super) fn check(query: &Query, reading: &mut Reading<'_>) {
    let _ = query.visit(&mut Frames { reading, moving: Vec::new() });
}

struct Frames<'r, 'a> {
    reading: &'r mut Reading<'a>,
    /// Named windows that move, of the SELECTs around.
    moving: Vec<Vec<String>>,
}

/// Whether the frame of a window loses rows as it goes on.
fn moves(spec: &WindowSpec, is_named: impl Fn(&str) -> bool) -> bool {
    match (&spec.window_frame, &spec.window_name) {
        (Some(frame), _) => !matches!(frame.start_bound, WindowFrameBound::Preceding(None)),
        (None, Some(name)) => is_named(&name.value),
        (None, None) => false,
    }
}

impl Visitor for Frames<'_, '_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        let mut moving: Vec<String> = Vec::new();
        for window in &select.named_window {
            let known = |name: &str| moving.iter().any(|known| known.eq_ignore_ascii_case(name));
            let is_moving = match &window.1 {
                NamedWindowExpr::WindowSpec(spec) => moves(spec, known),
                NamedWindowExpr::NamedWindow(name) => known(&name.value),
            };
            if is_moving {
                moving.push(window.0.value.clone());
            }
        }
        self.moving.push(moving);
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, _: &Select) -> ControlFlow<()> {
        self.moving.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let Expr::Function(call) = expr else { return ControlFlow::Continue(()) };
        let known = |name: &str| self.moving.last().is_some_and(|moving| moving.iter().any(|known| known.eq_ignore_ascii_case(name)));
        let is_moving = match &call.over {
            Some(WindowType::WindowSpec(spec)) => moves(spec, known),
            Some(WindowType::NamedWindow(name)) => known(&name.value),
            None => false,
        };
        if is_moving && let Some(name) = call_name(call).filter(|name| GROWING.contains(&name.as_str())) {
            let place = self.reading.source.of(expr);
            let help = "begin the frame with UNBOUNDED PRECEDING; sum, count, min, max and unique can move";
            self.reading.error("window-frame", place, format!("`{name}` cannot leave out rows that it has taken in"), help);
        }
        ControlFlow::Continue(())
    }
}

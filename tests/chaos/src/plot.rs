//! Curves over time as an SVG picture, one panel below the other: for the documents.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const PANEL: f64 = 190.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 28.0;
const COLOURS: [&str; 4] = ["#1b5e9b", "#c1502e", "#3c7d3c", "#7a5195"];

/// A curve: what it shows, and its points from left to right.
pub struct Curve {
    /// Its name, shown at its end.
    pub name: &'static str,
    /// Points (x, y); both are finite and not negative.
    pub points: Vec<(f64, f64)>,
}

/// Curves that share their axes.
pub struct Panel {
    /// What is shown, with its unit.
    pub title: &'static str,
    /// The curves, four at most.
    pub curves: Vec<Curve>,
}

/// The picture. `x` names what runs from left to right, with its unit.
pub fn svg(panels: &[Panel], x: &str) -> String {
    let height = PANEL * panels.len() as f64 + 10.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (n, panel) in panels.iter().enumerate() {
        draw(&mut out, panel, x, PANEL * n as f64);
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, panel: &Panel, x: &str, top: f64) {
    assert!(panel.curves.len() <= COLOURS.len(), "more curves than colours");
    let all = || panel.curves.iter().flat_map(|curve| &curve.points);
    let (x_step, x_end) = scale(all().map(|point| point.0));
    let (y_step, y_end) = scale(all().map(|point| point.1));
    let (from, to) = (LEFT, WIDTH - RIGHT);
    let (high, low) = (top + TOP, top + PANEL - BOTTOM);
    let across = |value: f64| from + value / x_end * (to - from);
    let up = |value: f64| low - value / y_end * (low - high);
    text(out, from, high - 12.0, "start", panel.title);
    text(out, to + 8.0, low + 14.0, "start", x);
    for tick in ticks(y_step, y_end) {
        let y = up(tick);
        line(out, (from, y), (to, y));
        text(out, from - 6.0, y + 4.0, "end", &number(tick));
    }
    for tick in ticks(x_step, x_end) {
        text(out, across(tick), low + 14.0, "middle", &number(tick));
    }
    for (curve, colour) in panel.curves.iter().zip(COLOURS) {
        let points: Vec<String> =
            curve.points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
        let points = points.join(" ");
        let _ = writeln!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>"
        );
        if let Some((_, y)) = curve.points.last() {
            text(out, to + 8.0, up(*y) + 4.0, "start", curve.name);
        }
    }
}

/// The distance of ticks and the end of an axis that holds these values and begins at 0.
fn scale(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let most = values.fold(f64::MIN_POSITIVE, f64::max);
    let rough = most / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(power * 10.0);
    (step, (most / step).ceil() * step)
}

fn ticks(step: f64, end: f64) -> impl Iterator<Item = f64> {
    (0..=(end / step).round() as u32).map(move |n| f64::from(n) * step)
}

/// Without the digits that rounding leaves.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn line(out: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#dddddd\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#333333\">{content}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_values_in_round_steps() {
        let axis = |most: f64| scale([0.0, most].into_iter());
        assert_eq!([axis(10.0), axis(2.62), axis(31.0)], [(2.0, 10.0), (1.0, 3.0), (10.0, 40.0)]);
        let (step, end) = axis(0.034);
        assert_eq!((number(step), number(end)), ("0.01".to_owned(), "0.04".to_owned()));
        assert_eq!(ticks(2.0, 6.0).map(number).collect::<Vec<_>>(), ["0", "2", "4", "6"]);
    }

    #[test]
    fn a_curve_runs_from_the_lower_left_to_the_upper_right() {
        let curve = Curve { name: "a < b", points: vec![(0.0, 0.0), (10.0, 5.0)] };
        let picture = svg(&[Panel { title: "of both", curves: vec![curve] }], "seconds");
        assert!(picture.contains("points=\"56.0,162.0 630.0,30.0\""), "{picture}");
        assert!(picture.contains(">a &lt; b</text>") && picture.contains(">of both</text>"));
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }
}

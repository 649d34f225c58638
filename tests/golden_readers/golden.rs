// Judges outputs by refdiff's test vectors: golden VECTORS OUTPUTS. The rule is in refdiff/oracle/guides/vectors.md.
use std::{env, fs, process::exit};

struct Tensor<'a> { name: &'a str, n: usize, width: usize, at: [usize; 2], limits: [f64; 3], certain: bool }

fn tensor(line: &str) -> Tensor<'_> {
    let w: Vec<&str> = line.split_whitespace().collect();
    let whole = |i: usize| w[i].parse::<usize>().unwrap();
    let real = |i: usize| w[i].parse::<f64>().unwrap();
    let (at, limits) = ([3, 4].map(whole), [5, 6, 7].map(real));
    Tensor { name: w[0], n: whole(1), width: whole(2), at, limits, certain: w[8] == "1" }
}

fn float(d: &[u8], begin: usize, i: usize) -> f64 {
    f32::from_le_bytes(d[begin + 4 * i..][..4].try_into().unwrap()) as f64
}

fn double(d: &[u8], begin: usize, i: usize) -> f64 { f64::from_le_bytes(d[begin + 8 * i..][..8].try_into().unwrap()) }

fn kind(x: f64) -> u8 { if x.is_nan() { 3 } else if x.is_infinite() { if x > 0.0 { 1 } else { 2 } } else { 0 } }

fn over(x: f64, y: f64) -> f64 { if x == 0.0 { 0.0 } else { x / y } }

fn wrong(t: &Tensor, data: &[u8], out: &[u8]) -> bool {
    let [row, bulk, slope] = t.limits;
    let (mut squares, mut ey, mut yy, mut rows) = (0.0, 0.0, 0.0, 0.0f64);
    for r in 0..t.n {
        let budget = float(data, t.at[1], r);
        if budget.is_infinite() { continue; }
        let (mut sum, mut seen, mut p, mut q) = (0.0, false, 0.0, 0.0);
        for i in r * t.width..(r + 1) * t.width {
            let (right, y) = (double(data, t.at[0], i), float(out, 0, i));
            if kind(right) != kind(y) { return true; }
            if kind(right) != 0 { continue; }
            let e = y - right;
            sum += e * e; p += e * right; q += right * right; seen = true;
        }
        let ratio = over((sum / t.width as f64).sqrt(), budget);
        if ratio > row { return true; }
        if !seen { continue; }
        squares += ratio * ratio; rows += 1.0;
        if budget > 0.0 && q >= budget * budget * t.width as f64 { ey += p / budget / budget; yy += q / budget / budget; }
    }
    let bulk = bulk + (row - bulk) / rows.sqrt();
    rows > 0.0 && ((squares / rows).sqrt() > bulk || over(ey, yy).abs() > slope)
}

fn main() {
    let args: Vec<String> = env::args().collect();
    if args.len() != 3 { eprintln!("usage: golden VECTORS OUTPUTS"); exit(2); }
    let index = fs::read_to_string(format!("{}/index.txt", args[1])).unwrap_or_default();
    let (head, rest) = index.split_once('\n').unwrap_or_default();
    if head != "refdiff-golden 6" { println!("index.txt is of another version"); exit(1); }
    let (mut id, mut data, mut good) = ("", vec![], true);
    for line in rest.lines() {
        let w: Vec<&str> = line.split_whitespace().collect();
        if w[0] == "input" { continue; }
        if w[0] == "case" {
            id = w[1]; data = fs::read(format!("{}/{}", args[1], w[2])).unwrap_or_default();
            continue;
        }
        let (t, out) = (tensor(line), fs::read(format!("{}/{}.{}.f32", args[2], id, w[0])));
        if out.is_err() && t.name != "out" { continue; }
        let said = match out {
            Err(_) => "missing",
            Ok(o) if data.is_empty() || o.len() != 4 * t.n * t.width || wrong(&t, &data, &o) => "fail",
            _ => if t.certain { "pass" } else { "inconclusive" },
        };
        good &= said == "pass"; println!("{id} {} {said}", t.name);
    }
    exit(if good { 0 } else { 1 });
}

// Judges outputs by refdiff's test vectors: golden VECTORS OUTPUTS. The rule is in refdiff/oracle/guides/vectors.md.
use std::{env, fs, process::exit};

struct Tensor<'a> { name: &'a str, rows: bool, n: usize, width: usize, at: [usize; 3], limits: [f64; 3], certain: bool }

fn tensor(line: &str) -> Tensor<'_> {
    let w: Vec<&str> = line.split_whitespace().collect();
    let whole = |i: usize| w[i].parse::<usize>().unwrap();
    let real = |i: usize| w[i].parse::<f64>().unwrap();
    let (at, limits) = ([4, 5, 6].map(whole), [7, 8, 9].map(real));
    Tensor { name: w[0], rows: w[1] == "rows", n: whole(2), width: whole(3), at, limits, certain: w[10] == "1" }
}

fn crc32(data: &[u8]) -> u32 {
    let bit = |c: u32, _| (c >> 1) ^ (0xEDB88320 & 0u32.wrapping_sub(c & 1));
    !data.iter().fold(!0u32, |c, b| (0..8).fold(c ^ *b as u32, bit))
}

fn at(d: &[u8], begin: usize, i: usize) -> f32 { f32::from_le_bytes(d[begin + 4 * i..][..4].try_into().unwrap()) }

fn kind(x: f32) -> u8 { if x.is_nan() { 3 } else if x.is_infinite() { if x > 0.0 { 1 } else { 2 } } else { 0 } }

fn over(x: f64, y: f64) -> f64 { if x == 0.0 { 0.0 } else { x / y } }

fn wrong(t: &Tensor, data: &[u8], out: &[u8]) -> bool {
    let [row, bulk, slope] = t.limits;
    let (mut squares, mut ey, mut yy, mut rows) = (0.0, 0.0, 0.0, 0.0f64);
    for r in 0..t.n {
        let budget = at(data, t.at[2], r) as f64;
        if budget.is_infinite() { continue; }
        let (mut sum, mut seen, mut p, mut q) = (0.0, false, 0.0, 0.0);
        for i in r * t.width..(r + 1) * t.width {
            let (hi, lo, y) = (at(data, t.at[0], i), at(data, t.at[1], i), at(out, 0, i));
            if kind(hi) != kind(y) && !lo.is_nan() { return true; }
            if kind(hi) != 0 || kind(y) != 0 { continue; }
            let h = hi as f64;
            let e = (y as f64 - h) - if lo.is_nan() { 0.0 } else { lo as f64 };
            sum += e * e; p += e * h; q += h * h; seen = true;
        }
        let ratio = over((sum / t.width as f64).sqrt(), budget);
        if ratio > row { return true; }
        if !seen || !t.rows { continue; }
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
    let cases = rest.lines().filter(|line| line.starts_with("case ")).count();
    if cases == 0 || head != format!("refdiff-golden 5 {cases} {:08x}", crc32(rest.as_bytes())) {
        println!("index.txt - changed"); exit(1);
    }
    let (mut id, mut data, mut whole, mut good) = ("", vec![], false, true);
    for line in rest.lines() {
        let w: Vec<&str> = line.split_whitespace().collect();
        if w[0] == "input" { continue; }
        if w[0] == "case" {
            id = w[1]; data = fs::read(format!("{}/{}", args[1], w[2])).unwrap_or_default();
            whole = data.len().to_string() == w[3] && format!("{:08x}", crc32(&data)) == w[4];
            if !whole { good = false; println!("{id} - changed"); }
            continue;
        }
        let (t, out) = (tensor(line), fs::read(format!("{}/{}.{}.f32", args[2], id, w[0])));
        if !whole || (out.is_err() && t.name != "out") { continue; }
        let said = match out {
            Err(_) => "missing",
            Ok(o) if o.len() != 4 * t.n * t.width || wrong(&t, &data, &o) => "fail",
            _ => if t.certain { "pass" } else { "inconclusive" },
        };
        good &= said == "pass"; println!("{id} {} {said}", t.name);
    }
    exit(if good { 0 } else { 1 });
}

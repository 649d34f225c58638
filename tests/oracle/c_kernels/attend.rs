//! Causal attention with grouped queries in float32: the preset `attention`. `--cfg mistake` plants one: heads share
//! keys by turns, not in blocks.

use std::ffi::{c_char, c_void, CStr};
use std::slice::from_raw_parts;

#[repr(C)]
pub struct Array {
    name: *const c_char,
    data: *mut c_void,
    shape: *const i64,
    strides: *const i64,
    dtype: i32,
    ndim: i32,
}

unsafe fn find<'a>(arrays: &'a [Array], name: &str) -> Option<&'a Array> {
    arrays.iter().find(|a| CStr::from_ptr(a.name).to_bytes() == name.as_bytes())
}

unsafe fn row(x: &Array, b: usize, h: usize, t: usize) -> impl Fn(usize) -> f32 {
    let s = from_raw_parts(x.strides, 4);
    let start = b as i64 * s[0] + h as i64 * s[1] + t as i64 * s[2];
    let (data, step) = (x.data as *const f32, s[3]);
    move |i| unsafe { *data.offset((start + i as i64 * step) as isize) }
}

/// # Safety
/// The arrays are those of refdiff_kernel.h.
#[no_mangle]
pub unsafe extern "C" fn attend(_spec: *const c_char, i: *const Array, n_i: i32, o: *const Array, n_o: i32) -> i32 {
    let (inputs, outputs) = (from_raw_parts(i, n_i as usize), from_raw_parts(o, n_o as usize));
    let (Some(q), Some(k), Some(v)) = (find(inputs, "q"), find(inputs, "k"), find(inputs, "v")) else { return 1 };
    if n_i != 3 || q.dtype != 0 {
        return 1;
    }
    let size = |x: &Array, axis: usize| *x.shape.add(axis) as usize;
    let (heads, queries, d, key_heads, keys, e) =
        (size(q, 1), size(q, 2), size(q, 3), size(k, 1), size(k, 2), size(v, 3));
    let out = find(outputs, "out").unwrap().data as *mut f32;
    for at in 0..size(q, 0) * heads * queries {
        let (b, h, t) = (at / (heads * queries), at / queries % heads, at % queries);
        let kh = if cfg!(mistake) { h % key_heads } else { h / (heads / key_heads) };
        let query = row(q, b, h, t);
        let seen = (t + keys + 1).saturating_sub(queries);
        let scores: Vec<f32> = (0..seen)
            .map(|s| {
                let key = row(k, b, kh, s);
                (0..d).map(|i| query(i) * key(i)).sum::<f32>() / (d as f32).sqrt()
            })
            .collect();
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f32 = weights.iter().sum();
        for i in 0..e {
            let sum: f32 = weights.iter().enumerate().map(|(s, w)| w * row(v, b, kh, s)(i)).sum();
            *out.add(at * e + i) = if seen > 0 { sum / total } else { 0.0 };
        }
    }
    0
}

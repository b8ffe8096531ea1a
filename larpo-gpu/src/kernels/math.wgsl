// Elementary functions that keep their relative accuracy where drivers' own do not.

// log(1 + x) for x in [0, 1]: 2·artanh(x / (2 + x)) as a series; the first term left out is below 2e-8 of the sum.
fn log_1p(x: f32) -> f32 {
    let s = x / (2.0 + x);
    let q = s * s;
    return 2.0 * s * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q / 13.0))))));
}

// log(x) for normal x > 0, by exponent and mantissa.
fn log_of(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let exponent = i32(bits >> 23u) - 127;
    let mantissa = bitcast<f32>((bits & 0x7fffffu) | 0x3f800000u);
    return f32(exponent) * 0.6931471805599453 + log_1p(mantissa - 1.0);
}

// log(1 + e^x)
fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + log_1p(exp(-abs(x)));
}

// 1 / (1 + e^-x)
fn sigmoid(x: f32) -> f32 {
    let e = exp(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

// Infinities and NaN by their bits: compilers may assume that there are none.
fn is_minus_infinity(x: f32) -> bool {
    return bitcast<u32>(x) == 0xff800000u;
}

// NaN or +infinity
fn is_unusable(x: f32) -> bool {
    let bits = bitcast<u32>(x);
    return (bits & 0x7fffffffu) > 0x7f800000u || bits == 0x7f800000u;
}

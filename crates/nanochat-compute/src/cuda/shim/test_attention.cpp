// Checks the attention kernels on a CPU against sums in float64.
//
//   c++ -O2 -std=c++17 -DNANOCHAT_SHIM -I shim -I kernels shim/test_attention.cpp -o test_attention
//   ./test_attention            every shape, warps in turn, late copies and products; then some at once
//   ./test_attention SEEDS      small shapes, warps in random order, that many times
#include "attention.cu"
#include "attention_cached.cu"
#include "attention_wgmma.cu"

#include <algorithm>
#include <random>

namespace {

typedef std::vector<double> Doubles;

// A tensor on the "device": f32 or bf16, with poison around it that must stay.
struct Tensor {
    static const size_t MARGIN = 64;
    bool half;
    size_t n;
    std::vector<unsigned char> bytes;

    Tensor(size_t n, bool half) : half(half), n(n), bytes((n + 2 * MARGIN) * (half ? 2 : 4), 0xff) {}
    size_t width() const { return half ? 2 : 4; }
    void* data() { return bytes.data() + MARGIN * width(); }
    void set(size_t i, float x) {
        if (half) ((bf16*)data())[i] = to_bf16(x);
        else ((float*)data())[i] = x;
    }
    double get(size_t i) { return half ? to_float(((bf16*)data())[i]) : ((float*)data())[i]; }
    void poison() { std::fill(bytes.begin(), bytes.end(), 0xff); }
    bool margins_whole() const {
        for (size_t i = 0; i < MARGIN * width(); i++) {
            if (bytes[i] != 0xff || bytes[bytes.size() - 1 - i] != 0xff) return false;
        }
        return true;
    }
};

std::mt19937 generator(1);

Tensor random_tensor(size_t n, bool half, float deviation) {
    std::normal_distribution<float> normal(0.0f, deviation);
    Tensor x(n, half);
    for (size_t i = 0; i < n; i++) x.set(i, normal(generator));
    return x;
}

template <class... A> void launch(const std::string& name, unsigned gx, unsigned gy, unsigned gz, unsigned block,
                                  size_t shared, A... arguments) {
    void* pointers[] = {(void*)&arguments...};
    unsigned grid[3] = {gx, gy, gz};
    if (nanochat_shim_launch(name.c_str(), grid, block, shared, pointers) != 0) {
        fprintf(stderr, "cannot launch %s\n", name.c_str());
        exit(1);
    }
}

int failures = 0;
double worst[4][8];  // by kind of case, then by output
const char* OUTPUTS[8] = {"out", "lse", "delta", "dq", "dk", "dv", "cached", ""};

// Root of the mean square error, relative to that of what is expected.
double check(const char* what, int kind, int output, Tensor& got, const Doubles& expected, double tolerance) {
    double error = 0.0, norm = 1e-30;
    for (size_t i = 0; i < got.n; i++) {
        double e = got.get(i) - expected[i];
        error += e * e;
        norm += expected[i] * expected[i];
    }
    error = sqrt(error / norm);
    if (error > worst[kind][output]) worst[kind][output] = error;
    if (!(error <= tolerance) || !got.margins_whole()) {
        printf("FAILED %s %s: error %.2e%s\n", what, OUTPUTS[output], error, got.margins_whole() ? "" : ", margins written");
        failures++;
    }
    return error;
}

struct Shape {
    int b, t, h, hkv, d, window;
    float scale;
    size_t queries() const { return (size_t)b * t * h; }
    size_t keys() const { return (size_t)b * t * hkv; }
};

unsigned ceil_div(size_t a, size_t b) { return (unsigned)((a + b - 1) / b); }

double dot64(Tensor& a, size_t i, Tensor& b, size_t j, int d) {
    double sum = 0.0;
    for (int c = 0; c < d; c++) sum += a.get(i * d + c) * b.get(j * d + c);
    return sum;
}

struct Expected {
    Doubles out, lse, delta, dq, dk, dv;
};

Expected reference(const Shape& s, Tensor& q, Tensor& k, Tensor& v, Tensor& dout) {
    size_t d = s.d;
    Expected r = {Doubles(s.queries() * d), Doubles(s.queries()), Doubles(s.queries()),
                  Doubles(s.queries() * d), Doubles(s.keys() * d), Doubles(s.keys() * d)};
    for (size_t i = 0; i < s.queries(); i++) {
        int head = i % s.h, t = i / s.h % s.t;
        size_t row = i / s.h - t;
        auto key_at = [&](int key) { return (row + key) * s.hkv + head / (s.h / s.hkv); };
        int first = std::max(0ll, (long long)t - s.window);
        Doubles score(t + 1);
        double top = -INFINITY, sum = 0.0, delta = 0.0;
        for (int key = first; key <= t; key++) {
            score[key] = s.scale * dot64(q, i, k, key_at(key), d);
            top = std::max(top, score[key]);
        }
        for (int key = first; key <= t; key++) sum += exp(score[key] - top);
        r.lse[i] = top + log(sum);
        for (int key = first; key <= t; key++) {
            double p = exp(score[key] - r.lse[i]);
            for (size_t c = 0; c < d; c++) r.out[i * d + c] += p * v.get(key_at(key) * d + c);
        }
        for (size_t c = 0; c < d; c++) delta += dout.get(i * d + c) * r.out[i * d + c];
        r.delta[i] = delta;
        for (int key = first; key <= t; key++) {
            size_t j = key_at(key);
            double p = exp(score[key] - r.lse[i]);
            double ds = s.scale * p * (dot64(dout, i, v, j, d) - delta);
            for (size_t c = 0; c < d; c++) {
                r.dv[j * d + c] += p * dout.get(i * d + c);
                r.dk[j * d + c] += ds * q.get(i * d + c);
                r.dq[i * d + c] += ds * k.get(j * d + c);
            }
        }
    }
    return r;
}

void check_gradients(const char* what, int kind, const Shape& s, bool half, Expected& r, Tensor& dq, Tensor& dk,
                     Tensor& dv) {
    // Where a query sees only itself the gradients of its score cancel: the reference is 0, and an error
    // relative to it says nothing.
    bool cancels = s.t == 1 || s.window == 0;
    check(what, kind, 5, dv, r.dv, half ? 4e-3 : 3e-6);
    for (Tensor* x : {&dq, &dk}) {
        Doubles& expected = x == &dq ? r.dq : r.dk;
        if (!cancels) check(what, kind, x == &dq ? 3 : 4, *x, expected, half ? 1e-2 : 3e-6);
        for (size_t i = 0; cancels && i < x->n; i++) {
            if (!(fabs(x->get(i)) < (half ? 0.3 : 3e-5))) {
                printf("FAILED %s: a gradient of %f instead of 0\n", what, x->get(i));
                failures++;
                break;
            }
        }
    }
}

// `tensor_cores`: else the plain kernels. Heads of 128 channels go through the wgmma kernels besides.
void check_attention(const Shape& s, bool half, bool tensor_cores) {
    char what[160];
    snprintf(what, sizeof what, "%s %s B %d T %d H %d/%d D %d window %d", tensor_cores ? "tensor" : "plain",
             half ? "bf16" : "f32", s.b, s.t, s.h, s.hkv, s.d, s.window);
    size_t d = s.d;
    Tensor q = random_tensor(s.queries() * d, half, 1.5f), k = random_tensor(s.keys() * d, half, 1.5f);
    Tensor v = random_tensor(s.keys() * d, half, 1.0f), dout = random_tensor(s.queries() * d, half, 1.0f);
    Tensor out(s.queries() * d, half), lse(s.queries(), false), delta(s.queries(), false);
    Tensor dq(s.queries() * d, half), dk(s.keys() * d, half), dv(s.keys() * d, half);
    Expected r = reference(s, q, k, v, dout);

    std::string type = half ? "bf16" : "f32", depth = std::to_string(s.d);
    unsigned rows = ceil_div(s.queries(), 8), tiles = ceil_div(s.t, 128);
    if (tensor_cores) {
        launch("attention_forward_" + depth, tiles, s.h, s.b, 128, 768 * d, out.data(), lse.data(), q.data(), k.data(),
               v.data(), s.t, s.h, s.hkv, s.window, s.scale);
    } else {
        launch("attention_plain_forward_" + type, rows, 1, 1, 256, 0, out.data(), lse.data(), q.data(), k.data(),
               v.data(), s.b, s.t, s.h, s.hkv, s.d, s.window, s.scale);
    }
    launch("attention_delta_" + type, rows, 1, 1, 256, 0, delta.data(), dout.data(), out.data(), (int)s.queries(), s.d);
    if (tensor_cores) {
        launch("attention_backward_kv_" + depth, tiles, s.hkv, s.b, 256, 1024 * d + 1024, dk.data(), dv.data(),
               dout.data(), lse.data(), delta.data(), q.data(), k.data(), v.data(), s.t, s.h, s.hkv, s.window, s.scale);
        launch("attention_backward_q_" + depth, tiles, s.h, s.b, 256, 1024 * d, dq.data(), dout.data(), lse.data(),
               delta.data(), q.data(), k.data(), v.data(), s.t, s.h, s.hkv, s.window, s.scale);
    } else {
        launch("attention_plain_backward_kv_" + type, ceil_div(s.keys(), 8), 1, 1, 256, 0, dk.data(), dv.data(),
               dout.data(), lse.data(), delta.data(), q.data(), k.data(), v.data(), s.b, s.t, s.h, s.hkv, s.d, s.window,
               s.scale);
        launch("attention_plain_backward_q_" + type, rows, 1, 1, 256, 0, dq.data(), dout.data(), lse.data(),
               delta.data(), q.data(), k.data(), v.data(), s.b, s.t, s.h, s.hkv, s.d, s.window, s.scale);
    }
    int kind = tensor_cores ? 0 : half ? 1 : 2;
    double tolerance = half ? 4e-3 : 3e-6;
    check(what, kind, 0, out, r.out, tolerance);
    check(what, kind, 1, lse, r.lse, 2e-6);
    check(what, kind, 2, delta, r.delta, tolerance);
    check_gradients(what, kind, s, half, r, dq, dk, dv);
    if (!tensor_cores || s.d != 128) return;
    memcpy(what, "wgmma ", 6);  // in the place of "tensor"
    for (Tensor* x : {&out, &lse, &dq, &dk, &dv}) x->poison();
    launch("attention_forward_wgmma_128", tiles, s.h, s.b, 256, 163840, out.data(), lse.data(), q.data(), k.data(),
           v.data(), s.t, s.h, s.hkv, s.window, s.scale);
    launch("attention_backward_kv_wgmma_128", tiles, s.hkv, s.b, 256, 198656, dk.data(), dv.data(), dout.data(),
           lse.data(), delta.data(), q.data(), k.data(), v.data(), s.t, s.h, s.hkv, s.window, s.scale);
    launch("attention_backward_q_wgmma_128", tiles, s.h, s.b, 256, 196608, dq.data(), dout.data(), lse.data(),
           delta.data(), q.data(), k.data(), v.data(), s.t, s.h, s.hkv, s.window, s.scale);
    check(what, 3, 0, out, r.out, tolerance);
    check(what, 3, 1, lse, r.lse, 2e-6);
    check_gradients(what, 3, s, half, r, dq, dk, dv);
}

const int SHAPES_OF_HEADS[3][2] = {{1, 1}, {4, 2}, {6, 6}};

void check_shapes() {
    const int everything = 1 << 30;
    int turn = 0;
    for (int t : {1, 7, 64, 65, 192, 256, 300}) {
        for (int window : {0, 1, 63, 64, 100, everything}) {
            for (int d : {64, 128}) {
                auto& heads = SHAPES_OF_HEADS[turn++ % 3];
                int b = turn % 2 + 1;
                check_attention({b, t, heads[0], heads[1], d, window, 1.0f / sqrtf(d)}, true, true);
            }
            for (int d : {8, 16, 32}) {
                auto& heads = SHAPES_OF_HEADS[turn++ % 3];
                int b = t < 100 ? turn % 2 + 1 : 1;
                check_attention({b, t, heads[0], heads[1], d, window, 1.0f / sqrtf(d)}, turn % 2 == 0, false);
            }
        }
    }
    check_attention({1, 40, 2, 1, 50, 20, 0.2f}, false, false);
    check_attention({1, 40, 2, 1, 256, 20, 0.06f}, true, false);
}

void check_small(unsigned seeds) {
    for (unsigned seed = 1; seed <= seeds; seed++) {
        nanochat_shim_mode(seed, seed % 4);
        for (int d : {64, 128}) {
            check_attention({1, d == 128 ? 520 : 200, 1, 1, d, 1 << 30, 0.1f}, true, true);
            check_attention({1, 300, 2, 1, d, 70, 0.1f}, true, true);
        }
    }
}

void report() {
    const char* kinds[4] = {"tensor cores bf16", "plain bf16", "plain f32", "wgmma bf16"};
    for (int kind = 0; kind < 4; kind++) {
        printf("%-18s", kinds[kind]);
        for (int i = 0; i < 7; i++) {
            if (worst[kind][i] > 0.0) printf("  %s %.1e", OUTPUTS[i], worst[kind][i]);
        }
        printf("\n");
    }
}

}  // namespace

#include "test_attention_cached.h"

int main(int count, char** arguments) {
    if (count > 1) {
        check_small((unsigned)atoi(arguments[1]));
        check_cached_small((unsigned)atoi(arguments[1]));
    } else {
        check_shapes();
        check_cached_shapes();
        for (int eager : {1, 2, 3}) {
            nanochat_shim_mode(0, eager);
            check_attention({1, 300, 2, 1, 64, 100, 0.1f}, true, true);
            check_attention({1, 300, 2, 1, 128, 100, 0.1f}, true, true);
        }
    }
    report();
    printf(failures == 0 ? "all right\n" : "%d FAILED\n", failures);
    return failures != 0;
}

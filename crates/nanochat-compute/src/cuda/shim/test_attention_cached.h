// Part of test_attention.cpp: attention against a cache in pages.
namespace {

struct CachedShape {
    int rows, t, h, hkv, d, window;
    int starts[3];
    float scale;
};

// How many pages each row names: enough for the latest position, and one that nothing looks at.
int pages_of(const CachedShape& s) {
    int last = 0;
    for (int i = 0; i < s.rows; i++) last = std::max(last, s.starts[i] + s.t);
    return (last + 63) / 64 + 1;
}

// Places with the pages in some order; pages that no query of the row sees get a number that does not exist.
std::vector<int> places_of(const CachedShape& s) {
    int pages = pages_of(s);
    std::vector<int> order(s.rows * pages), places;
    for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
    std::shuffle(order.begin(), order.end(), generator);
    for (int row = 0; row < s.rows; row++) {
        int start = s.starts[row];
        places.push_back(start);
        long long first = std::max(0ll, (long long)start - s.window) / 64, end = (start + s.t + 63) / 64;
        for (int page = 0; page < pages; page++) {
            bool seen = page >= first && page < end;
            places.push_back(seen ? order[row * pages + page] : 1 << 28);
        }
    }
    return places;
}

Doubles cached_reference(const CachedShape& s, Tensor& q, Tensor& k, Tensor& v, const std::vector<int>& places) {
    int pages = pages_of(s), d = s.d;
    Doubles out(q.n);
    for (size_t i = 0; i < q.n / d; i++) {
        int head = i % s.h, kv_head = head / (s.h / s.hkv), row = (int)(i / s.h / s.t);
        const int* place = &places[row * (1 + pages)];
        int query = place[0] + (int)(i / s.h % s.t);
        auto at = [&](int key) { return ((size_t)place[1 + key / 64] * s.hkv + kv_head) * 64 + key % 64; };
        Doubles weight;
        double sum = 0.0;
        int first = (int)std::max(0ll, (long long)query - s.window);
        for (int key = first; key <= query; key++) {
            weight.push_back(exp(s.scale * dot64(q, i, k, at(key), d)));
            sum += weight.back();
        }
        for (int key = first; key <= query; key++) {
            for (int c = 0; c < d; c++) out[i * d + c] += weight[key - first] / sum * v.get(at(key) * d + c);
        }
    }
    return out;
}

// Runs every kernel that takes the shape and the types.
void check_cached(const CachedShape& s, bool half_q, bool half_cache) {
    char what[160];
    snprintf(what, sizeof what, "cached %d_%d rows %d T %d H %d/%d D %d window %d start %d", half_q ? 16 : 32,
             half_cache ? 16 : 32, s.rows, s.t, s.h, s.hkv, s.d, s.window, s.starts[0]);
    int pages = pages_of(s), d = s.d;
    std::vector<int> places = places_of(s);
    Tensor q = random_tensor((size_t)s.rows * s.t * s.h * d, half_q, 1.5f);
    Tensor k = random_tensor((size_t)s.rows * pages * s.hkv * 64 * d, half_cache, 1.5f);
    Tensor v = random_tensor((size_t)s.rows * pages * s.hkv * 64 * d, half_cache, 1.0f);
    Doubles expected = cached_reference(s, q, k, v, places);
    // What comes after the last query must not matter.
    for (int row = 0; row < s.rows; row++) {
        const int* place = &places[row * (1 + pages)];
        for (int position = 0; position < pages * 64; position++) {
            int page = place[1 + position / 64];
            if (position < place[0] + s.t || page == 1 << 28) continue;
            for (int head = 0; head < s.hkv; head++) {
                size_t at = (((size_t)page * s.hkv + head) * 64 + position % 64) * d;
                for (int c = 0; c < d; c++) k.set(at + c, NAN), v.set(at + c, NAN);
            }
        }
    }
    Tensor out(q.n, half_q);
    std::string q_type = half_q ? "bf16" : "f32", types = q_type + (half_cache ? "_bf16" : "_f32");
    int kind = half_q ? 1 : 2;
    double tolerance = half_q ? 4e-3 : 3e-6;

    launch("attention_cached_" + types, ceil_div(q.n / d, 8), 1, 1, 256, 0, out.data(), q.data(), k.data(), v.data(),
           places.data(), s.rows, s.t, pages, s.h, s.hkv, d, s.window, s.scale);
    check(what, kind, 6, out, expected, tolerance);
    if (d != 64 && d != 128) return;

    int group = s.h / s.hkv;
    for (int heads : {1, 4}) {
        for (int splits : {1, 3, 7}) {
            if (s.t != 1) continue;
            out.poison();
            Tensor partial((size_t)s.rows * s.h * splits * (d + 4), false);
            std::string kernel = "attention_decode_" + types + "_" + std::to_string(d) + "_" + std::to_string(heads);
            launch(kernel, splits, s.hkv * ceil_div(group, heads), s.rows, 128, 16 * heads * (d + 4), partial.data(),
                   q.data(), k.data(), v.data(), places.data(), pages, s.h, s.hkv, s.window, s.scale);
            launch("attention_decode_combine_" + q_type, s.h, s.rows, 1, 128, 0, out.data(), partial.data(), splits, d);
            check(what, kind, 6, out, expected, tolerance);
        }
    }
    for (int each = 1; each <= 2 && half_q && half_cache; each++) {
        out.poison();
        launch("attention_prefill_" + std::to_string(d), ceil_div(s.t, 64 * each), s.h, s.rows, 128, 640 * d, out.data(),
               q.data(), k.data(), v.data(), places.data(), s.t, pages, s.h, s.hkv, s.window, s.scale);
        check(what, 0, 6, out, expected, tolerance);
    }
}

void check_cached_shapes() {
    const int everything = 1 << 30;
    int turn = 0;
    for (int t : {1, 2, 65, 130}) {
        for (int window : {0, 1, 63, 64, 100, everything}) {
            for (int d : {8, 50, 64, 128}) {
                int turns = t == 1 ? 3 : 1;
                for (int i = 0; i < turns; i++) {
                    auto& heads = SHAPES_OF_HEADS[turn++ % 3];
                    bool half_cache = turn % 3 != 0, half_q = turn % 3 == 1;
                    int rows = t == 1 ? 3 : 1;
                    int starts[4] = {0, 63, 64, 300};
                    CachedShape s = {rows, t, heads[0], heads[1], d, window, {starts[turn % 4], 191, 5}, 1.0f / sqrtf(d)};
                    check_cached(s, half_q, half_cache);
                }
            }
        }
    }
    check_cached({2, 1, 12, 2, 128, everything, {1000, 64, 0}, 0.08f}, true, true);
    check_cached({2, 130, 4, 1, 128, everything, {70, 0, 0}, 0.08f}, true, true);
    check_cached({1, 200, 4, 2, 64, 90, {130, 0, 0}, 0.08f}, true, true);
}

void check_cached_small(unsigned seeds) {
    for (unsigned seed = 1; seed <= seeds; seed++) {
        nanochat_shim_mode(seed, seed % 3 == 0);
        for (int d : {64, 128}) {
            check_cached({2, 1, 4, 2, d, 100, {150, 40, 0}, 0.1f}, true, true);
            check_cached({1, 130, 1, 1, d, 100, {90, 0, 0}, 0.1f}, true, true);
        }
    }
}

}  // namespace

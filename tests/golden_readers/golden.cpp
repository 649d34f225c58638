// Judges outputs by refdiff's test vectors: golden VECTORS OUTPUTS. The rule is in refdiff/oracle/golden/__init__.py.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>
using std::string;
using Bytes = std::vector<char>;

struct Tensor {
    string name, kind;
    size_t n, width, hi, lo, budget, bound, certain;
    double u, row, bulk, element, slope;
};

static bool read(const string& path, Bytes& data) {
    std::ifstream file(path, std::ios::binary);
    data.assign(std::istreambuf_iterator<char>(file), {});
    return bool(file);
}

static uint32_t crc32(const Bytes& data) {
    uint32_t c = ~0u;
    for (unsigned char b : data)
        for (int i = (c ^= b, 0); i < 8; i++) c = (c >> 1) ^ (0xEDB88320u & -(c & 1));
    return ~c;
}

static float at(const Bytes& d, size_t begin, size_t i) { float x; std::memcpy(&x, &d[begin + 4 * i], 4); return x; }
static int kind(float x) { return std::isnan(x) ? 3 : std::isinf(x) ? (x > 0 ? 1 : 2) : 0; }
static double over(double x, double y) { return x == 0 ? 0 : x / y; }

static bool wrong(const Tensor& t, const Bytes& data, const Bytes& out) {
    double squares = 0, ey = 0, yy = 0, rows = 0;
    for (size_t r = 0; r < t.n; r++) {
        double E = at(data, t.budget, r), sum = 0;
        if (std::isinf(E)) continue;
        bool seen = false;
        for (size_t i = r * t.width; i < (r + 1) * t.width; i++) {
            float hi = at(data, t.hi, i), lo = at(data, t.lo, i), y = at(out, 0, i);
            if (kind(hi) != kind(y) && !std::isnan(lo)) return true;
            if (kind(hi) || kind(y)) continue;
            double e = (double(y) - hi) - (std::isnan(lo) ? 0 : lo);
            double allowed = t.kind == "rows" ? t.element * (6 * E + 2 * t.u * std::fabs(hi)) : E;
            if (over(std::fabs(e), allowed) > 1) return true;
            sum += e * e, ey += e * hi, yy += double(hi) * hi, seen = true;
        }
        if (!seen || t.kind == "numbers") continue;
        double rms = std::sqrt(sum / t.width), ratio = over(rms, E);
        if (ratio > t.row || over(rms, at(data, t.bound, r)) > 1) return true;
        squares += ratio * ratio, rows++;
    }
    double bulk = t.bulk + (t.row - t.bulk) / std::sqrt(rows);
    return rows && (std::sqrt(squares / rows) > bulk || std::fabs(over(ey, yy)) > t.slope);
}

int main(int argc, char** argv) {
    if (argc != 3) return std::cerr << "usage: golden VECTORS OUTPUTS\n", 2;
    std::ifstream index(string(argv[1]) + "/index.txt");
    string line, word, id, file;
    bool good = std::getline(index, line) && line == "refdiff-golden 1";
    size_t size, count, crc;
    while (index >> word >> id >> file >> size >> std::hex >> crc >> std::dec >> count) {
        Bytes data, out;
        bool whole = read(string(argv[1]) + "/" + file, data) && data.size() == size && crc32(data) == crc;
        if (!whole) good = false, std::cout << id << " - changed\n";
        for (Tensor t; count-- > 0;) {
            index >> t.name >> t.kind >> t.n >> t.width >> t.hi >> t.lo >> t.budget >> t.bound;
            index >> t.u >> t.row >> t.bulk >> t.element >> t.slope >> t.certain;
            bool there = read(string(argv[2]) + "/" + id + "." + t.name + ".f32", out);
            if (!whole || (!there && t.name != "out")) continue;
            bool fails = out.size() != 4 * t.n * t.width || wrong(t, data, out);
            string said = !there ? "missing" : fails ? "fail" : t.certain ? "pass" : "inconclusive";
            good = good && said == "pass", std::cout << id << " " << t.name << " " << said << "\n";
        }
    }
    return good ? 0 : 1;
}

// Judges outputs by refdiff's test vectors: golden VECTORS OUTPUTS. The rule is in refdiff/oracle/guides/vectors.md.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
using std::string;
struct Tensor { string kind; size_t n, width, hi, lo, budget, certain; double row, bulk, slope; };

static bool read(const string& path, string& data) {
    std::ifstream file(path, std::ios::binary);
    return data.assign(std::istreambuf_iterator<char>(file), {}), bool(file);
}

static string crc32(const string& data) {
    uint32_t c = ~0u; string text(9, 0);
    for (unsigned char b : data)
        for (int i = (c ^= b, 0); i < 8; i++) c = (c >> 1) ^ (0xEDB88320u & -(c & 1));
    return std::snprintf(&text[0], text.size(), "%08x", unsigned(~c)), text.substr(0, 8);
}

static float at(const string& d, size_t begin, size_t i) { float x; std::memcpy(&x, &d[begin + 4 * i], 4); return x; }
static int kind(float x) { return std::isnan(x) ? 3 : std::isinf(x) ? (x > 0 ? 1 : 2) : 0; }
static double over(double x, double y) { return x == 0 ? 0 : x / y; }

static bool wrong(const Tensor& t, const string& data, const string& out) {
    double squares = 0, ey = 0, yy = 0, rows = 0;
    for (size_t r = 0; r < t.n; r++) {
        double E = at(data, t.budget, r), sum = 0, seen = 0, p = 0, q = 0;
        if (std::isinf(E)) continue;
        for (size_t i = r * t.width; i < (r + 1) * t.width; i++) {
            float hi = at(data, t.hi, i), lo = at(data, t.lo, i), y = at(out, 0, i);
            if (kind(hi) != kind(y) && !std::isnan(lo)) return true;
            if (kind(hi) || kind(y)) continue;
            double e = (double(y) - hi) - (std::isnan(lo) ? 0 : lo);
            sum += e * e, p += e * hi, q += double(hi) * hi, seen++;
        }
        double ratio = over(std::sqrt(sum / t.width), E);
        if (ratio > t.row) return true;
        if (!seen || t.kind == "numbers") continue;
        squares += ratio * ratio, rows++;
        if (E > 0 && q >= E * E * t.width) ey += p / E / E, yy += q / E / E;
    }
    double bulk = t.bulk + (t.row - t.bulk) / std::sqrt(rows);
    return rows && (std::sqrt(squares / rows) > bulk || std::fabs(over(ey, yy)) > t.slope);
}

int main(int argc, char** argv) {
    if (argc != 3) return std::cerr << "usage: golden VECTORS OUTPUTS\n", 2;
    string vectors = string(argv[1]) + "/", text, line, word, id, file, size, crc, data, out;
    read(vectors + "index.txt", text);
    string head = text.substr(0, text.find('\n')), rest = head == text ? "" : text.substr(head.size() + 1);
    size_t cases = 0;
    for (size_t i = 0; (i = text.find("\ncase ", i)) != string::npos; i++) cases++;
    bool good = cases && head == "refdiff-golden 5 " + std::to_string(cases) + " " + crc32(rest), whole = false;
    if (!good) return std::cout << "index.txt - changed\n", 1;
    for (std::istringstream lines(rest); std::getline(lines, line);) {
        std::istringstream words(line);
        if (words >> word; word == "case") {
            words >> id >> file >> size >> crc, read(vectors + file, data);
            whole = std::to_string(data.size()) == size && crc32(data) == crc, good = good && whole;
            if (!whole) std::cout << id << " - changed\n";
        } else if (Tensor t; whole && word != "input") {
            words >> t.kind >> t.n >> t.width >> t.hi >> t.lo >> t.budget;
            words >> t.row >> t.bulk >> t.slope >> t.certain;
            bool there = read(string(argv[2]) + "/" + id + "." + word + ".f32", out);
            if (!there && word != "out") continue;
            bool fails = out.size() != 4 * t.n * t.width || wrong(t, data, out);
            string said = !there ? "missing" : fails ? "fail" : t.certain ? "pass" : "inconclusive";
            good = good && said == "pass", std::cout << id << " " << word << " " << said << "\n";
        }
    }
    return good ? 0 : 1;
}

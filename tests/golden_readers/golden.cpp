// Judges outputs by refdiff's test vectors: golden VECTORS OUTPUTS. The rule is in refdiff/oracle/guides/vectors.md.
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
using std::string;
struct Tensor { size_t n, width, expected, budget, certain; double row, bulk, slope; };

static bool read(const string& path, string& data) {
    std::ifstream file(path, std::ios::binary);
    return data.assign(std::istreambuf_iterator<char>(file), {}), bool(file);
}

template <class T> static double at(const string& data, size_t begin, size_t i) {
    T x;
    return std::memcpy(&x, &data[begin + sizeof x * i], sizeof x), x;
}
static int kind(double x) { return std::isnan(x) ? 3 : std::isinf(x) ? (x > 0 ? 1 : 2) : 0; }
static double over(double x, double y) { return x == 0 ? 0 : x / y; }

static bool wrong(const Tensor& t, const string& data, const string& out) {
    double squares = 0, ey = 0, yy = 0, rows = 0;
    for (size_t r = 0; r < t.n; r++) {
        double E = at<float>(data, t.budget, r), sum = 0, seen = 0, p = 0, q = 0;
        if (std::isinf(E)) continue;
        for (size_t i = r * t.width; i < (r + 1) * t.width; i++) {
            double right = at<double>(data, t.expected, i), y = at<float>(out, 0, i), e = y - right;
            if (kind(right) != kind(y)) return true;
            if (!kind(right)) sum += e * e, p += e * right, q += right * right, seen++;
        }
        double ratio = over(std::sqrt(sum / t.width), E);
        if (ratio > t.row) return true;
        if (!seen) continue;
        squares += ratio * ratio, rows++;
        if (E > 0 && q >= E * E * t.width) ey += p / E / E, yy += q / E / E;
    }
    double bulk = t.bulk + (t.row - t.bulk) / std::sqrt(rows);
    return rows && (std::sqrt(squares / rows) > bulk || std::fabs(over(ey, yy)) > t.slope);
}

int main(int argc, char** argv) {
    if (argc != 3) return std::cerr << "usage: golden VECTORS OUTPUTS\n", 2;
    string vectors = string(argv[1]) + "/", index, line, word, id, file, data, out;
    bool good = read(vectors + "index.txt", index);
    if (index.rfind("refdiff-golden 6\n", 0)) return std::cout << "index.txt is of another version\n", 1;
    for (std::istringstream lines(index.substr(index.find('\n') + 1)); std::getline(lines, line);) {
        std::istringstream words(line);
        if (words >> word; word == "case") {
            words >> id >> file, read(vectors + file, data);
        } else if (Tensor t; word != "input") {
            words >> t.n >> t.width >> t.expected >> t.budget >> t.row >> t.bulk >> t.slope >> t.certain;
            bool there = read(string(argv[2]) + "/" + id + "." + word + ".f32", out);
            if (!there && word != "out") continue;
            bool fails = data.empty() || out.size() != 4 * t.n * t.width || wrong(t, data, out);
            string said = !there ? "missing" : fails ? "fail" : t.certain ? "pass" : "inconclusive";
            good = good && said == "pass", std::cout << id << " " << word << " " << said << "\n";
        }
    }
    return good ? 0 : 1;
}

// Boost's message_queue for callers who have no C++: what throws there fails here.
#include <boost/interprocess/ipc/message_queue.hpp>
#include <cstddef>
#include <exception>
#include <new>

using namespace boost::interprocess;

extern "C" {

// A null pointer if that fails; otherwise to be closed. `messages` of at most `length` bytes fit.
void *boost_create(const char *name, std::size_t messages, std::size_t length) noexcept {
    try {
        return new message_queue(create_only, name, messages, length);
    } catch (const std::exception &) {
        return nullptr;
    }
}

// A null pointer if that fails; otherwise to be closed.
void *boost_open(const char *name) noexcept {
    try {
        return new message_queue(open_only, name);
    } catch (const std::exception &) {
        return nullptr;
    }
}

void boost_close(void *queue) noexcept { delete static_cast<message_queue *>(queue); }

// Waits for room. Whether the message was sent.
bool boost_send(void *queue, const void *message, std::size_t length) noexcept {
    try {
        static_cast<message_queue *>(queue)->send(message, length, 0);
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

// Waits for a message. Whether there was one that is exactly as long.
bool boost_receive(void *queue, void *to, std::size_t length) noexcept {
    try {
        message_queue::size_type received = 0;
        unsigned priority = 0;
        static_cast<message_queue *>(queue)->receive(to, length, received, priority);
        return received == length;
    } catch (const std::exception &) {
        return false;
    }
}

bool boost_remove(const char *name) noexcept { return message_queue::remove(name); }
}
